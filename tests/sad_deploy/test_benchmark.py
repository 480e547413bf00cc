from __future__ import annotations

import dataclasses
import functools
import importlib.util
import io
import itertools
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from PIL import Image

from sad_deploy.benchmark import (
    DEFAULT_BATCH_SIZES,
    Benchmark,
    EndToEnd,
    ModelPass,
    Options,
    Run,
    benchmark,
)
from sad_deploy.benchmark.photographs import make_photographs
from sad_deploy.benchmark.plan import batch_sizes
from sad_deploy.benchmark.plot import draw, headline
from sad_deploy.benchmark.timing import Timing, take_turns
from sad_deploy.plotting import check_plot
from sad_runtime.bundle import write_bundle
from sad_runtime.choices import BackendChoice
from sad_runtime.devices import cuda_devices
from sad_runtime.errors import BackendError, BundleError, MissingExtraError, UserError
from sad_runtime.manifest import Graph
from tests.support.tiny_bundle import linear_model, manifest_of, two_pass_graph, write_tiny_bundle

NO_GPU = pytest.mark.skipif(cuda_devices().count > 0, reason="what is said where there is no GPU")
SHORT = Options(seconds=0, batch_sizes=(1, 3), backends=(BackendChoice.CPU,), workers=2)


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "sad-model", linear_model())


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "photos"
    folder.mkdir()
    return [Path(item.name) for item in make_photographs(folder, 5)]


def first_pass(path: Path) -> bytes:
    model = onnx.load(path)
    return onnx.utils.Extractor(model).extract_model(["image"], ["plain_logits"]).SerializeToString()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    folder = write_tiny_bundle(tmp_path_factory.mktemp("measured") / "sad-model", linear_model())
    return benchmark(folder, options=SHORT, single_pass=first_pass)


def test_every_batch_size_has_figures_that_agree_with_each_other(measured: Benchmark) -> None:
    assert [(run.backend, run.precision, run.batch_size) for run in measured.runs] == [
        ("cpu", "fp32", 1),
        ("cpu", "fp32", 3),
    ]
    for run in measured.runs:
        assert run.single_pass is not None
        for figures in (run.single_pass, run.two_passes):
            assert figures.images_per_second == pytest.approx(
                1000 * run.batch_size / figures.latency_ms_median
            )
            assert 0 < figures.latency_ms_median <= figures.latency_ms_p95
            assert figures.cpu_ms_per_image > 0
        assert run.latency_ratio == run.two_passes.latency_ms_median / run.single_pass.latency_ms_median
        assert run.cpu_ratio == run.two_passes.cpu_ms_per_image / run.single_pass.cpu_ms_per_image
        parts = measured.decode.cpu_ms_per_image + run.two_passes.cpu_ms_per_image
        assert run.end_to_end.cpu_ratio_to_decode_plus_model == run.end_to_end.cpu_ms_per_image / parts
        assert run.end_to_end.images_per_round == 2 * run.batch_size


def test_without_time_three_rounds_of_everything_are_made(measured: Benchmark) -> None:
    rounds = {measured.decode.rounds}
    for run in measured.runs:
        assert run.single_pass is not None
        rounds |= {run.single_pass.rounds, run.two_passes.rounds, run.end_to_end.rounds}
    assert rounds == {3}


def test_json_says_what_was_measured_on_what(measured: Benchmark) -> None:
    found = json.loads(measured.to_json())
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["versions"]["numpy"] == np.__version__
    assert {name for name in found["machine"]["versions"] if name.startswith("onnxruntime")}
    assert found["machine"]["gpus"] == [device.name for device in cuda_devices().devices]
    assert len(found["bundle"]["manifest_sha256"]) == 64
    assert found["options"] == {
        "backends": ["cpu"],
        "precisions": [],
        "batch_sizes": [1, 3],
        "workers": 2,
        "seconds": 0,
        "images": 256,
    }
    assert found["images"] == {"made_up": True, "used": 32, "failed": {}, "failed_example": None}
    assert (
        found["runs"][1]["two_passes"]["latency_ms_median"] == measured.runs[1].two_passes.latency_ms_median
    )


def test_without_the_single_passs_graph_there_is_no_ratio(bundle_folder: Path, photos: list[Path]) -> None:
    for run in benchmark(bundle_folder, photos, SHORT).runs:
        assert (run.single_pass, run.latency_ratio, run.cpu_ratio) == (None, None, None)


def test_images_that_cannot_be_decoded_are_counted_and_left_out(
    bundle_folder: Path, photos: list[Path], tmp_path: Path
) -> None:
    empty, cut = tmp_path / "empty.jpg", tmp_path / "cut.jpg"
    empty.touch()
    cut.write_bytes(photos[0].read_bytes()[:500])
    found = benchmark(bundle_folder, [empty, *photos, cut, empty], SHORT).images
    assert (found.made_up, found.used, found.failed) == (False, 5, {"empty": 2, "truncated": 1})
    assert found.failed_example is not None
    assert found.failed_example.startswith(f"{empty} (")


def test_no_usable_image_is_an_error_that_names_one(bundle_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of the 1 images can be decoded, for example .*no\.png"):
        benchmark(bundle_folder, [tmp_path / "no.png"], SHORT)
    with pytest.raises(UserError, match="there is no image"):
        benchmark(bundle_folder, [], SHORT)


def test_of_endless_images_only_the_first_ones_are_used(bundle_folder: Path, photos: list[Path]) -> None:
    endless = itertools.cycle(photos)
    options = dataclasses.replace(SHORT, images=3, batch_sizes=(7,))
    assert benchmark(bundle_folder, endless, options).images.used == 3
    assert next(endless) == photos[3]


def test_progress_is_told_before_every_measurement(bundle_folder: Path, photos: list[Path]) -> None:
    told: list[tuple[int, int, str]] = []
    benchmark(bundle_folder, photos, SHORT, progress=lambda *step: told.append(step))
    assert [(done, total) for done, total, _ in told] == [(i, 6) for i in range(6)]
    assert told[-1][2] == "cpu fp32, batch 3: end to end"


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    shape = (3, 128, 128)
    folder = write_tiny_bundle(tmp_path / "sad-model", linear_model(shape))
    paths = [tmp_path / f"{i}.png" for i in range(150)]
    for path in paths:
        Image.fromarray(np.full((128, 128, 3), 200, np.uint8)).save(path)
    options = dataclasses.replace(SHORT, batch_sizes=(4,))
    benchmark(folder, paths[:1], options)  # what is imported and kept
    tracemalloc.start()
    try:
        benchmark(folder, paths, options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 32 kept, a batch of 4, and some more of 4 in the pipeline.
    assert peak < 75 * 4 * np.prod(shape)


@NO_GPU
def test_backends_that_do_not_run_are_listed_with_their_reason(
    bundle_folder: Path, photos: list[Path]
) -> None:
    pytest.importorskip("openvino", reason="needs the extra openvino; the test install has it")
    found = benchmark(bundle_folder, photos, dataclasses.replace(SHORT, backends=()))
    assert {run.backend for run in found.runs} == {"cpu", "openvino"}
    reasons = {entry.backend: entry.reason for entry in found.not_measured}
    assert set(reasons) == {"cuda", "tensorrt", "rtx"}
    assert "needs an NVIDIA GPU" in reasons["cuda"]
    assert "has no rtx engine" in reasons["rtx"]


@NO_GPU
def test_a_backend_that_was_asked_for_is_not_passed_over(bundle_folder: Path) -> None:
    with pytest.raises(BackendError, match="cuda backend needs an NVIDIA GPU"):
        benchmark(bundle_folder, options=Options(backends=(BackendChoice.CPU, BackendChoice.CUDA)))
    with pytest.raises(BundleError, match="no rtx engine"):
        benchmark(bundle_folder, options=Options(backends=(BackendChoice.RTX,)))


@NO_GPU
def test_auto_is_measured_under_the_name_of_what_it_took_and_once(
    bundle_folder: Path, photos: list[Path]
) -> None:
    options = dataclasses.replace(SHORT, backends=(BackendChoice.AUTO, BackendChoice.CPU), batch_sizes=(2, 2))
    assert [(run.backend, run.batch_size) for run in benchmark(bundle_folder, photos, options).runs] == [
        ("cpu", 2)
    ]


def test_every_precision_of_the_bundle_is_measured_or_the_one_asked_for(
    tmp_path: Path, photos: list[Path]
) -> None:
    model = linear_model()
    files = {"fp32": "model.onnx", "fp16": "model.fp16.onnx"}
    with write_bundle(tmp_path / "sad-model") as draft:
        draft.path("weights.safetensors").write_bytes(b"none")
        for name in files.values():
            onnx.save(two_pass_graph(model), draft.path(name))
        graphs = tuple(Graph(name, precision, "auto", "portable", {}) for precision, name in files.items())
        draft.manifest = manifest_of(model, graphs=graphs)
    cut: list[str] = []

    def single_pass(path: Path) -> bytes:
        cut.append(path.name)
        return first_pass(path)

    options = dataclasses.replace(SHORT, batch_sizes=(1,))
    found = benchmark(tmp_path / "sad-model", photos, options, single_pass=single_pass)
    assert [run.precision for run in found.runs] == ["fp32", "fp16"]
    assert cut == ["model.onnx", "model.fp16.onnx"]
    found = benchmark(tmp_path / "sad-model", photos, dataclasses.replace(options, precisions=("fp16",)))
    assert [run.precision for run in found.runs] == ["fp16"]


def test_a_precision_that_a_backend_does_not_run_is_listed_unless_it_was_asked_for(
    tmp_path: Path, photos: list[Path]
) -> None:
    model = linear_model()
    with write_bundle(tmp_path / "sad-model") as draft:
        draft.path("weights.safetensors").write_bytes(b"none")
        onnx.save(two_pass_graph(model), draft.path("model.onnx"))
        draft.path("model.fp16.onnx").write_bytes(b"nothing that onnxruntime can open")
        files = {"fp32": "model.onnx", "fp16": "model.fp16.onnx"}
        graphs = tuple(Graph(name, precision, "auto", "portable", {}) for precision, name in files.items())
        draft.manifest = manifest_of(model, graphs=graphs)
    found = benchmark(tmp_path / "sad-model", photos, SHORT)
    assert {run.precision for run in found.runs} == {"fp32"}
    (entry,) = found.not_measured
    assert (entry.backend, entry.precision) == ("cpu", "fp16")
    assert "cannot open the graph" in entry.reason
    with pytest.raises(BackendError, match="cannot open the graph"):
        benchmark(tmp_path / "sad-model", photos, dataclasses.replace(SHORT, precisions=("fp32", "fp16")))


def test_a_precision_that_the_bundle_lacks_is_an_error(bundle_folder: Path) -> None:
    with pytest.raises(BundleError, match="has no fp16 graph, only fp32"):
        benchmark(bundle_folder, options=Options(precisions=("fp32", "fp16")))


def test_a_bundle_without_a_graph_is_an_error(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "sad-model", linear_model(), exported=False)
    with pytest.raises(BundleError, match="has no exported graph yet"):
        benchmark(tmp_path / "sad-model")


def test_a_changed_graph_is_an_error_and_not_a_reason_to_pass_over(bundle_folder: Path) -> None:
    with (bundle_folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match=r"model\.onnx was changed"):
        benchmark(bundle_folder)


class Engine:
    """Stands for an engine, which needs a GPU to be loaded."""

    name = "rtx"
    input_shape = (3, 8, 8)
    output_names = ("logits",)

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch

    def run(self, images: npt.NDArray[np.float32], outputs: object) -> dict[str, npt.NDArray[np.float32]]:
        raise AssertionError("not run here")

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def test_a_batch_above_an_engines_profile_is_an_error_and_the_default_is_cut_to_it() -> None:
    assert batch_sizes(Engine(16), Options()) == (1, 8)
    assert batch_sizes(Engine(32), Options()) == DEFAULT_BATCH_SIZES
    assert batch_sizes(Engine(16), Options(batch_sizes=(16, 2, 16))) == (16, 2)
    with pytest.raises(UserError, match="a batch of 17 is more than the rtx engine takes at once, 16"):
        batch_sizes(Engine(16), Options(batch_sizes=(1, 17)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seconds": float("nan")}, "seconds must be a finite number of at least 0, got nan"),
        ({"seconds": float("inf")}, "got inf"),
        ({"seconds": -1}, "got -1"),
        ({"batch_sizes": (1, 0)}, "batch size must be at least 1, got 0"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"images": 0}, "images must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Options(**wrong)  # type: ignore[arg-type]


def test_jobs_take_turns_until_the_time_is_over() -> None:
    order: list[str] = []

    def job(name: str) -> None:
        order.append(name)
        time.sleep(0.02)

    timings = take_turns({name: functools.partial(job, name) for name in ("a", "b")}, 0.2)
    assert order == ["a", "b"] * timings["a"].rounds
    assert 3 < timings["a"].rounds <= 6
    assert timings["a"].median_wall >= 0.02 > timings["a"].median_cpu


def test_the_percentile_is_a_time_that_was_measured() -> None:
    timing = Timing(wall=[float(i) for i in range(100, 0, -1)], cpu=[])
    assert timing.wall_percentile(95) == 95
    assert Timing(wall=[2.0, 9.0, 1.0], cpu=[]).wall_percentile(95) == 9


def test_made_up_photographs_are_jpegs_of_the_size_that_is_said_and_always_the_same(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    first, second = ([Path(item.name).read_bytes() for item in make_photographs(f, 3)] for f in folders)
    assert first == second
    assert len(set(first)) == 3
    with Image.open(io.BytesIO(first[0])) as image:
        assert (image.format, image.size) == ("JPEG", (500, 375))


def test_measuring_needs_neither_torch_nor_onnx_nor_matplotlib(bundle_folder: Path) -> None:
    code = """
import json, sys
from sad_deploy.benchmark import Options, benchmark
benchmark(sys.argv[1], options=Options(seconds=0, batch_sizes=(1,), images=1))
print(json.dumps(sorted(sys.modules)))
"""
    run = subprocess.run(
        [sys.executable, "-c", code, bundle_folder], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(run.stdout))
    assert "onnxruntime" in loaded
    assert not {"torch", "onnx", "onnx_ir", "matplotlib", "sad_export"} & loaded


@pytest.fixture
def _needs_matplotlib() -> Iterator[None]:
    pytest.importorskip("matplotlib", reason="needs the extra benchmark")
    yield


@pytest.mark.usefixtures("_needs_matplotlib")
def test_the_plot_names_its_axes_with_units_and_all_its_bars(measured: Benchmark) -> None:
    with Image.open(io.BytesIO(draw(measured, Path("plot.png")))) as image:
        assert image.size == (1200, 700)
    svg = draw(measured, Path("plot.SVG")).decode()
    for text in (
        "milliseconds an image",
        "batch size (images)",
        "single pass",
        "two passes",
        "end to end",
        "decoding only",
        "cpu, fp32",
    ):
        assert f"<!-- {text}" in svg
    assert draw(measured, Path("plot.pdf")).startswith(b"%PDF")


@pytest.mark.usefixtures("_needs_matplotlib")
def test_an_engine_has_no_bar_for_the_single_pass(measured: Benchmark) -> None:
    engine = [dataclasses.replace(run, backend="rtx", single_pass=None) for run in measured.runs]
    svg = draw(dataclasses.replace(measured, runs=tuple(engine)), Path("plot.svg")).decode()
    assert "<!-- rtx, fp32" in svg
    assert "<!-- two passes" in svg
    assert "<!-- single pass" not in svg


def run_of(backend: str, precision: str, batch_size: int, single: float | None, two: float) -> Run:
    """Passes of so many milliseconds a batch."""

    def model_pass(ms: float) -> ModelPass:
        return ModelPass(
            latency_ms_median=ms,
            latency_ms_p95=ms,
            images_per_second=1000 * batch_size / ms,
            cpu_ms_per_image=ms / batch_size,
            rounds=3,
        )

    return Run(
        backend=backend,
        precision=precision,
        batch_size=batch_size,
        single_pass=None if single is None else model_pass(single),
        two_passes=model_pass(two),
        latency_ratio=None if single is None else two / single,
        cpu_ratio=None if single is None else two / single,
        end_to_end=EndToEnd(
            images_per_second=900 * batch_size / two,
            cpu_ms_per_image=two / batch_size,
            cpu_ratio_to_decode_plus_model=1.0,
            images_per_round=8,
            rounds=3,
        ),
    )


FP32 = [run_of("cpu", "fp32", 1, 10, 30), run_of("cpu", "fp32", 8, 50, 180)]
INT8 = [run_of("cpu", "int8", 1, 4, 15), run_of("cpu", "int8", 8, 20, 60)]


def test_the_headline_says_the_cost_with_the_largest_batch_and_that_of_other_precisions() -> None:
    text, relative_to = headline(FP32 + INT8) or ("", "")
    assert text == "two passes cost 3.6 ×; int8 would cost 1.2 ×"
    assert relative_to == "the time of one fp32 pass (cpu, batch 8)"


def test_the_headline_speaks_of_what_was_measured_only() -> None:
    assert (headline(FP32) or ("",))[0] == "two passes cost 3.6 ×"
    assert (headline([*FP32, INT8[0], run_of("cuda", "fp16", 8, 1, 2)]) or ("",))[
        0
    ] == "two passes cost 3.6 ×"
    assert headline([run_of("rtx", "fp16", 8, None, 3)]) is None


@pytest.mark.usefixtures("_needs_matplotlib")
def test_the_plot_is_titled_with_its_headline_and_starts_at_zero(
    measured: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: figures.append(self) or savefig(self, *a, **k)
    )
    slow_decoding = dataclasses.replace(measured.decode, images_per_second=10)
    draw(dataclasses.replace(measured, runs=(*FP32, *INT8)), Path("plot.png"))
    draw(dataclasses.replace(measured, runs=(*FP32, *INT8), decode=slow_decoding), Path("plot.png"))
    for figure, longest in zip(figures, (10 / 9 * 30, 100), strict=True):
        assert figure.get_suptitle().startswith("two passes cost 3.6 ×; int8 would cost 1.2 ×\n")
        left, right = figure.axes
        assert left.get_yscale() == "linear"
        assert left.get_ylim() == right.get_ylim()
        assert left.get_ylim()[0] == 0 and left.get_ylim()[1] > longest


@pytest.mark.parametrize("name", ["plot", "plot.jpg", ".png"])
def test_another_ending_of_the_plot_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"its ending must be one of \.png, \.svg, \.pdf"):
        check_plot(Path(name))


def test_a_plot_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="a plot needs matplotlib, which is not installed") as caught:
        check_plot(Path("plot.png"))
    assert caught.value.hint == 'pip install "sad-deploy[benchmark]"'
