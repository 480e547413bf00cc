"""``sad-deploy export`` of a bare forward graph, of a bundle in lower precision, and wrong uses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import typer
from models import forward_onnx, randomised, small_cnn
from typer.testing import CliRunner
from without_deconvolution import without_deconvolution

from sad_deploy.calibrated import write_calibrated
from sad_deploy.cli.export import export
from sad_deploy.data import ImageSet
from sad_deploy.data.digits import PREPROCESSING
from sad_deploy.models import build_model
from sad_export import two_pass
from sad_export.precision import Variant, lower
from sad_runtime.bundle import Bundle
from sad_runtime.bundle.read import sha256
from sad_runtime.classifier import Classifier
from sad_runtime.errors import BackendError, BundleError, UserError
from sad_runtime.manifest import Defence, InputSpace, Manifest, ModelSource
from sad_runtime.tensorrt import read_sidecar

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(export)


def run(*arguments: str) -> str:
    """stdout of the command; what it raises is raised."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False, standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.stdout


@pytest.fixture(scope="module")
def forward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forward") / "forward.onnx"
    onnx.save(forward_onnx(small_cnn()), str(path))
    return path


def test_a_bare_graph_becomes_a_verified_two_pass_graph_and_an_engine(forward: Path, tmp_path: Path) -> None:
    out = tmp_path / "defended.onnx"
    printed = run(
        str(forward), "--eta", "0.05", "--mean", ".5,.5,.5", "--std", ".25,.25,.25", "--trt",
        "--flavor", "rtx", "--out", str(out),
    )  # fmt: skip
    assert "slope error" in printed
    assert [o.name for o in onnx.load(str(out)).graph.output] == ["logits", "saliency", "plain_logits"]
    assert json.loads((tmp_path / "defended.rtx.json").read_text())["flavor"] == "rtx"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "defended.onnx",
        "defended.rtx.json",
        "defended.rtx.plan",
    ]


def test_a_bare_graph_is_verified_on_a_folder_of_images(forward: Path, tmp_path: Path) -> None:
    import skimage.data
    from PIL import Image

    (tmp_path / "images").mkdir()
    for name in ("astronaut", "coffee", "chelsea"):
        Image.fromarray(getattr(skimage.data, name)()).save(tmp_path / "images" / f"{name}.png")
    out = tmp_path / "d.onnx"
    printed = run(str(forward), "--eta", "0.05", "--images", str(tmp_path / "images"), "--out", str(out))
    assert "3" in printed
    assert out.is_file()


def test_weights_in_a_file_of_their_own_are_taken_in(tmp_path: Path) -> None:
    """PyTorch's exporter writes them so by default."""
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "forward.onnx"
    onnx.save(
        forward_onnx(small_cnn()), str(source), save_as_external_data=True, location="w", size_threshold=1024
    )
    out = tmp_path / "out.onnx"
    run(str(source), "--eta", "0.05", "--out", str(out))
    (tmp_path / "in" / "w").unlink()
    onnx.checker.check_model(str(out), full_check=True)


def test_an_engine_of_an_earlier_graph_is_pointed_out(
    forward: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "d.onnx"
    run(str(forward), "--eta", "0.05", "--trt", "--flavor", "rtx", "--out", str(out))
    result = CliRunner().invoke(app, [str(forward), "--eta", "0.5", "--out", str(out)], standalone_mode=False)
    assert result.exception is None
    told = (result.stderr + capfd.readouterr().err).replace("\n", "")
    assert "d.rtx.plan is of an earlier graph" in told


def test_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    graph = forward_onnx(small_cnn())
    for value in (graph.graph.input[0], graph.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(graph, str(tmp_path / "f.onnx"))
    with pytest.raises(UserError, match="its batch is fixed to 2"):
        run(str(tmp_path / "f.onnx"), "--eta", "0.1")


TRT = ("{forward}", "--eta", "0.1", "--trt", "--flavor", "rtx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{forward}"], "needs --eta"),
        (["{forward}", "--eta", "0.1", "--mean", "a,b,c", "--std", "1,1,1"], "comma-separated numbers"),
        (["{forward}", "--eta", "0.1", "--batch", "8"], "MIN:BEST:MAX"),
        (["{forward}", "--eta", "0.1", "--batch", "8:4:2"], "must ascend"),
        (["{forward}", "--eta", "0.1", "--trt", "--target", "cpu"], "portable graph"),
        (["{forward}", "--eta", "0.1", "--out", "{forward}"], "is the graph that is read"),
        (
            ["{forward}", "--eta", "0.1", "--target", "cpu", "--precision", "fp16"],
            "is for fp32 and int8, not fp16",
        ),
        (["{forward}", "--eta", "0.1", "--target", "cpu", "--saliency-precision", "bf16"], "not fp32-bf16"),
        (["{forward}", "--eta", "0.1", "--ranges", "entropy", "--precision", "fp16"], "and fp16 has none"),
        (["{forward}", "--eta", "0.1", "--precision", "int8"], "the ranges of int8 are those of real images"),
        (
            ["{forward}", "--eta", "0.1", "--flavor", "rtx", "--batch", "1:2:4"],
            "--flavor, --batch: only with",
        ),
        (["{forward}", "--eta", "0.1", "--tf32", "--gpu-target", "sm_89"], "--gpu-target, --tf32: only with"),
        (
            ["{forward}", "--eta", "0.1", "--optimization-level", "0", "--verbose"],
            "--verbose: only with --trt",
        ),
        (["absent", "--hardware-compatibility", "ampere+", "--no-engine-cache"], "--no-engine-cache: only"),
        ([*TRT, "--gpu-target", "sm_90"], "knows no GPU target sm_90"),
        ([*TRT, "--hardware-compatibility", "ampere+"], "no hardware compatibility"),
        (["absent.onnx", "--eta", "0.1"], "no ONNX file"),
        (["absent", "--eta", "0.1"], "only for a bare forward.onnx"),
        (["absent"], "absent"),
    ],
)
def test_wrong_use_is_refused_and_nothing_is_written(
    forward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        run(*(argument.format(forward=forward) for argument in arguments))
    assert message in caught.value.message
    assert list(tmp_path.iterdir()) == []
    assert [p.name for p in forward.parent.iterdir()] == ["forward.onnx"]


def digit_images(count: int = 24) -> ImageSet:
    """Real ones, 16×16."""
    from sklearn.datasets import load_digits

    pixels = np.kron(load_digits().images[:count], np.ones((2, 2))) * 15.9
    return ImageSet(pixels.astype(np.uint8)[:, None], None)


def write_bundle_of(model: torch.nn.Module, folder: Path, samples: ImageSet | None) -> Path:
    manifest = Manifest(
        model=ModelSource("digits", 10),
        classes=tuple(map(str, range(10))),
        preprocessing=PREPROCESSING,
        input_space=InputSpace((0.3,), (0.3,)),
        defence=Defence(0.4),
        calibration={},
    )
    write_calibrated(folder, model, manifest, samples)
    return folder


def digits_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return randomised(build_model("digits", 10))


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that has not been exported; tests copy it."""
    return write_bundle_of(digits_model(), tmp_path_factory.mktemp("calibrated") / "b", digit_images())


@pytest.fixture(scope="module")
def in_fp16(calibrated: Path) -> Path:
    """The bundle with its graph and engine in fp16, and the float32 graph that comes with them."""
    folder = calibrated.with_name("fp16")
    shutil.copytree(calibrated, folder)
    printed = run(str(folder), "--precision", "fp16", "--trt", "--flavor", "rtx", "--batch", "1:2:4")
    assert "model.onnx against PyTorch" in printed
    assert "model.fp16.onnx against PyTorch" in printed
    return folder


def test_a_bundle_gets_a_graph_and_an_engine_in_lower_precision_beside_float32(in_fp16: Path) -> None:
    manifest = Bundle.open(in_fp16).manifest
    assert [(g.file, g.precision) for g in manifest.graphs] == [
        ("model.onnx", "fp32"),
        ("model.fp16.onnx", "fp16"),
    ]
    figures = manifest.graphs[1].verification
    assert figures["label_agreement"] == 1
    assert 0.995 <= figures["saliency_cosine_median"] < 1
    (engine,) = manifest.engines
    assert (engine.file, engine.graph, engine.precision) == (
        "engines/model.fp16.rtx.plan",
        "model.fp16.onnx",
        "fp16",
    )
    size = {g.precision: (in_fp16 / g.file).stat().st_size for g in manifest.graphs}
    assert size["fp16"] < 0.6 * size["fp32"]


@pytest.mark.parametrize("words", [("int8",), ("fp32", "int8")])
def test_int8_for_the_cpu_is_verified_and_runs(
    calibrated: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    folder = tmp_path / "b"
    shutil.copytree(calibrated, folder)
    options = ["--precision", words[0], *(["--saliency-precision", words[1]] if words[1:] else [])]
    run(str(folder), "--target", "cpu", *options)
    label = "-".join(words)
    (graph,) = [g for g in Bundle.open(folder).manifest.graphs if g.precision == label]
    assert (graph.file, graph.target) == (f"model.{label}.onnx", "cpu")
    assert graph.verification["label_agreement"] >= 0.98
    assert 0.9 <= graph.verification["saliency_cosine_median"] < 1
    images = digit_images().images[:5].astype(np.float32) / np.float32(255)
    with Classifier.load(folder, backend="cpu", precision=label) as classifier:
        lowered = classifier.predict(images, outputs=("saliency",))
    with Classifier.load(folder, backend="cpu") as classifier:
        whole = classifier.predict(images, outputs=("saliency",))
    assert (lowered.labels == whole.labels).all()
    assert lowered.saliency is not None
    assert whole.saliency is not None
    assert np.abs(lowered.saliency - whole.saliency).max() > 0


def test_int8_for_tensorrt_has_an_engine_and_takes_entropy_for_its_ranges(
    calibrated: Path, tmp_path: Path
) -> None:
    files = {}
    for ranges in ("percentile", "entropy"):
        folder = tmp_path / ranges
        shutil.copytree(calibrated, folder)
        options = ["--precision", "int8", "--ranges", ranges, "--allow-inaccurate"]
        run(str(folder), *options, "--trt", "--flavor", "rtx", "--batch", "1:2:4")
        manifest = Bundle.open(folder).manifest
        assert [e.precision for e in manifest.engines] == ["int8"]
        files[ranges] = manifest.files["model.int8.onnx"]
    assert files["percentile"] != files["entropy"]


def test_another_precision_leaves_those_there_and_the_same_replaces_its_engines(
    in_fp16: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "b"
    shutil.copytree(in_fp16, folder)
    run(str(folder), "--precision", "fp32", "--saliency-precision", "fp16")
    manifest = Bundle.open(folder).manifest
    assert [g.precision for g in manifest.graphs] == ["fp32", "fp16", "fp32-fp16"]
    assert [e.precision for e in manifest.engines] == ["fp16"]
    run(str(folder), "--precision", "fp16", "--dgrad", "conv")
    manifest = Bundle.open(folder).manifest
    assert [g.precision for g in manifest.graphs] == ["fp32", "fp16", "fp32-fp16"]
    assert manifest.engines == ()
    assert not (folder / "engines").exists()


def test_the_same_export_again_changes_nothing_and_keeps_its_engines(in_fp16: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(in_fp16, folder)
    before = (folder / "manifest.json").read_bytes()
    run(str(folder), "--precision", "fp16")
    assert (folder / "manifest.json").read_bytes() == before
    Bundle.open(folder).file("engines/model.fp16.rtx.plan")


def test_a_defended_graph_is_a_classifier_too(forward: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    run(str(forward), "--eta", "0.05", "--out", str(once))
    with pytest.raises(UserError, match=r"3 outputs .*--logits"):
        run(str(once), "--eta", "0.05", "--out", str(twice))
    assert "slope error" in run(str(once), "--eta", "0.05", "--logits", "logits", "--out", str(twice))


def test_a_bundle_runs_in_the_precision_asked_for_and_names_those_it_has(in_fp16: Path) -> None:
    images = digit_images().images.astype(np.float32) / np.float32(255)
    logits = {}
    for precision in ("fp32", "fp16"):
        with Classifier.load(in_fp16, backend="cpu", precision=precision) as classifier:
            logits[precision] = classifier.predict(images).logits
    assert not np.array_equal(logits["fp16"], logits["fp32"])
    assert np.array_equal(logits["fp16"].argmax(1), logits["fp32"].argmax(1))
    with pytest.raises(BundleError, match="has no bf16 graph, only fp16, fp32") as caught:
        Classifier.load(in_fp16, backend="cpu", precision="bf16")
    assert "--precision bf16" in str(caught.value.hint)


def test_where_deconvolution_has_no_kernel_graph_and_engine_are_written_with_conv(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx; the test install has it")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", without_deconvolution(rtx))
    folder = tmp_path / "b"
    shutil.copytree(calibrated, folder)
    run(str(folder), "--trt", "--flavor", "rtx", "--batch", "1:2:4", "--no-engine-cache")
    bundle = Bundle.open(folder)
    (graph,) = bundle.manifest.graphs
    (engine,) = bundle.manifest.engines
    assert graph.dgrad == "conv"
    assert graph.verification["label_agreement"] == 1
    assert read_sidecar(folder / engine.sidecar).onnx_sha256 == sha256(bundle.file(graph.file))


def test_the_same_engine_is_built_once(calibrated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(calibrated, folder)
    arguments = [str(folder), "--trt", "--flavor", "rtx", "--batch", "1:3:5", "--optimization-level", "2"]
    told = []
    for _ in range(2):
        result = CliRunner().invoke(app, arguments, standalone_mode=False)
        assert result.exception is None
        told.append(result.stderr)
    assert "taken from the cache" not in told[0]
    assert "taken from the cache" in told[1]
    (engine,) = Bundle.open(folder).manifest.engines
    info = read_sidecar(folder / engine.sidecar)
    assert (info.from_cache, info.optimization_level) == (True, 2)
    assert sha256(folder / engine.file) == info.engine_sha256


def test_verbose_shows_tensorrts_log(forward: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "o.onnx")]
    arguments = [str(forward), "--eta", "0.1", "--trt", "--flavor", "rtx", "--no-engine-cache", *out]
    for verbose in (False, True):
        result = CliRunner().invoke(app, arguments + ["--verbose"] * verbose, standalone_mode=False)
        assert result.exception is None
        assert ("TensorRT info: Detected 1 inputs" in result.stderr) is verbose


def test_a_bf16_graph_is_for_engines(calibrated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(calibrated, folder)
    run(str(folder), "--precision", "bf16")
    graph = Bundle.open(folder).graph("bf16")
    assert graph.dgrad == "conv"
    assert graph.verification["saliency_cosine_median"] >= 0.98
    with pytest.raises(BackendError, match="onnxruntime's CPU has no bf16 kernels"):
        Classifier.load(folder, backend="cpu", precision="bf16")


def test_a_precision_below_its_tolerance_leaves_the_bundle_as_it_was(tmp_path: Path) -> None:
    """Activations beyond 65504, from weights that fit."""
    model = digits_model()
    last = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)][-1]
    last.weight.data *= 1e5
    folder = write_bundle_of(model, tmp_path / "b", digit_images())
    before = sorted((path.name, path.read_bytes()) for path in folder.iterdir())
    with pytest.raises(UserError, match="differs from its reference on 24 images") as caught:
        run(str(folder), "--precision", "fp16", "--allow-inaccurate")
    assert "bf16" in str(caught.value.hint)
    assert sorted((path.name, path.read_bytes()) for path in folder.iterdir()) == before


def test_a_bundle_without_samples_is_refused_in_any_precision(tmp_path: Path) -> None:
    folder = write_bundle_of(digits_model(), tmp_path / "b", None)
    with pytest.raises(BundleError, match="holds no sample images"):
        run(str(folder), "--precision", "fp16")


def test_a_bare_graph_in_lower_precision_is_compared_with_its_float32_form(
    forward: Path, tmp_path: Path
) -> None:
    source = tmp_path / "f.onnx"
    shutil.copy(forward, source)
    printed = run(str(source), "--eta", "0.05", "--precision", "fp16", "--trt", "--flavor", "rtx")
    assert "slope error" in printed
    assert "against its float32 form" in " ".join(printed.split())  # a long path wraps the title
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "f.onnx",
        "f.sad.fp16.onnx",
        "f.sad.fp16.rtx.json",
        "f.sad.fp16.rtx.plan",
    ]


def test_a_classifier_in_half_precision_is_refused(
    forward: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The first pass of a graph in fp16, cut out."""
    lowered = tmp_path_factory.mktemp("lowered") / "two_pass.onnx"
    onnx.save(lower(two_pass(forward, eta=0.05), Variant.of("fp16")).typed, str(lowered))
    source = tmp_path / "half.onnx"
    onnx.utils.extract_model(str(lowered), str(source), ["image"], ["plain_logits"])
    for precision in ("fp32", "fp16"):
        with pytest.raises(UserError, match="half precision already"):
            run(str(source), "--eta", "0.05", "--precision", precision)
    assert [path.name for path in tmp_path.iterdir()] == ["half.onnx"]
