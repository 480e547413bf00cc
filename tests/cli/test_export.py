"""``sad-deploy export`` of a bundle, in float32 and in lower precision."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sad_deploy.calibrated import write_calibrated
from sad_deploy.cli import app
from sad_deploy.data import ImageSet
from sad_deploy.data.digits import PREPROCESSING
from sad_deploy.models import build_model
from sad_runtime.acceptance import verify_bundle
from sad_runtime.bundle import Bundle
from sad_runtime.bundle.read import sha256
from sad_runtime.classifier import Classifier
from sad_runtime.errors import BackendError, BundleError, UserError
from sad_runtime.manifest import Defence, InputSpace, Manifest, ModelSource
from sad_runtime.tensorrt import read_sidecar
from sad_runtime.verification.references import read_references
from tests.support.command_line import run_command
from tests.support.integer_kernels import kernels_saturate
from tests.support.models import randomised
from tests.support.without_deconvolution import without_deconvolution


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
    printed = run_command(
        "export", str(folder), "--precision", "fp16", "--trt", "--flavor", "rtx", "--batch", "1:2:4"
    )
    assert "model.onnx against PyTorch" in " ".join(printed.split())  # a long path wraps the title
    assert "model.fp16.onnx against PyTorch" in " ".join(printed.split())  # a long path wraps the title
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
    run_command("export", str(folder), "--target", "cpu", *options)
    label = "-".join(words)
    (graph,) = [g for g in Bundle.open(folder).manifest.graphs if g.precision == label]
    assert (graph.file, graph.target) == (f"model.{label}.cpu.onnx", "cpu")
    assert graph.verification["label_agreement"] >= 0.98
    # Without VNNI the kernels saturate; the tolerance itself is 0.8.
    assert (0.8 if kernels_saturate() else 0.9) <= graph.verification["saliency_cosine_median"] < 1
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
        run_command("export", str(folder), *options, "--trt", "--flavor", "rtx", "--batch", "1:2:4")
        manifest = Bundle.open(folder).manifest
        assert [e.precision for e in manifest.engines] == ["int8"]
        files[ranges] = manifest.files["model.int8.onnx"]
    assert files["percentile"] != files["entropy"]


def test_another_precision_leaves_those_there_and_the_same_replaces_its_engines(
    in_fp16: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "b"
    shutil.copytree(in_fp16, folder)
    run_command("export", str(folder), "--precision", "fp32", "--saliency-precision", "fp16")
    manifest = Bundle.open(folder).manifest
    assert [g.precision for g in manifest.graphs] == ["fp32", "fp16", "fp32-fp16"]
    assert [e.precision for e in manifest.engines] == ["fp16"]
    run_command("export", str(folder), "--precision", "fp16", "--conv-gradient", "conv")
    manifest = Bundle.open(folder).manifest
    assert [g.precision for g in manifest.graphs] == ["fp32", "fp16", "fp32-fp16"]
    assert manifest.engines == ()
    assert not (folder / "engines").exists()


def test_an_absent_bundle_and_an_engine_of_the_cpus_graph_are_refused(
    calibrated: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        run_command("export", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="portable graph"):
        run_command("export", str(calibrated), "--trt", "--target", "cpu")


def test_json_is_what_was_written(in_fp16: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(in_fp16, folder)
    shown = json.loads(
        run_command("export", str(folder), "--precision", "fp16", "--conv-gradient", "conv", "--json")
    )
    (graph,) = shown["graphs"]
    assert (graph["file"], graph["precision"]) == ("model.fp16.onnx", "fp16")
    assert graph["bytes"] == (folder / graph["file"]).stat().st_size
    assert graph["verification"]["label_agreement"] == 1
    assert (shown["engine"], shown["removed"]) == (None, ["engines/model.fp16.rtx.plan"])


def test_the_same_export_again_changes_nothing_and_keeps_its_engines(in_fp16: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(in_fp16, folder)
    before = (folder / "manifest.json").read_bytes()
    run_command("export", str(folder), "--precision", "fp16")
    assert (folder / "manifest.json").read_bytes() == before
    Bundle.open(folder).file("engines/model.fp16.rtx.plan")


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
    run_command("export", str(folder), "--trt", "--flavor", "rtx", "--batch", "1:2:4", "--no-engine-cache")
    bundle = Bundle.open(folder)
    graph, for_cpu = bundle.manifest.graphs
    (engine,) = bundle.manifest.engines
    assert (graph.conv_gradient, for_cpu.target) == ("conv", "cpu")
    assert graph.verification["label_agreement"] == 1
    assert read_sidecar(folder / engine.sidecar).onnx_sha256 == sha256(bundle.file(graph.file))


def test_the_same_engine_is_built_once(calibrated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(calibrated, folder)
    arguments = [
        "export",
        str(folder),
        "--trt",
        "--flavor",
        "rtx",
        "--batch",
        "1:3:5",
        "--optimization-level",
        "2",
    ]
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


def test_a_bf16_graph_is_for_engines(calibrated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(calibrated, folder)
    run_command("export", str(folder), "--precision", "bf16")
    graph = Bundle.open(folder).graph("bf16")
    assert graph.conv_gradient == "conv"
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
        run_command("export", str(folder), "--precision", "fp16", "--allow-inaccurate")
    assert "bf16" in str(caught.value.hint)
    assert sorted((path.name, path.read_bytes()) for path in folder.iterdir()) == before


def test_a_bundle_without_samples_is_refused_in_any_precision(tmp_path: Path) -> None:
    folder = write_bundle_of(digits_model(), tmp_path / "b", None)
    with pytest.raises(BundleError, match="holds no sample images"):
        run_command("export", str(folder), "--precision", "fp16")


def test_a_bundle_gets_both_forms_and_what_pytorch_said(calibrated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(calibrated, folder)
    run_command("export", str(folder))
    bundle = Bundle.open(folder)
    assert [(g.file, g.target) for g in bundle.manifest.graphs] == [
        ("model.onnx", "portable"),
        ("model.cpu.onnx", "cpu"),
    ]
    references = read_references(bundle)
    assert references is not None
    assert len(references) == 24
    found = list(verify_bundle(bundle))
    ran = [each for each in found if each.figures is not None]
    assert {each.verdict for each in ran} == {"verified"}
    assert {(each.file, each.backend) for each in ran} >= {("model.onnx", "cpu"), ("model.cpu.onnx", "cpu")}


def test_one_target_alone_leaves_the_other_form_as_it_was(calibrated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(calibrated, folder)
    run_command("export", str(folder), "--target", "cpu")
    assert [g.file for g in Bundle.open(folder).manifest.graphs] == ["model.cpu.onnx"]
    for_cpu = sha256(folder / "model.cpu.onnx")
    run_command("export", str(folder), "--target", "portable")
    assert [g.file for g in Bundle.open(folder).manifest.graphs] == ["model.onnx", "model.cpu.onnx"]
    assert sha256(folder / "model.cpu.onnx") == for_cpu
