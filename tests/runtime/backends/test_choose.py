from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sad_runtime.backends import BackendOptions, open_backend
from sad_runtime.bundle import Bundle, write_bundle
from sad_runtime.choices import BackendChoice
from sad_runtime.devices import cuda_devices
from sad_runtime.errors import BackendError, BundleError, UserError
from sad_runtime.manifest import Engine, Manifest, Preprocessing
from sad_runtime.tensorrt import Flavor
from tests.support.fake_gpu import install, write_engine
from tests.support.tiny_bundle import LinearModel, changed, write_tiny_bundle

ENGINE_FILES = ("engines/e.plan", "engines/e.json")
no_gpu = pytest.mark.skipif(cuda_devices().count > 0, reason="what is chosen where there is no GPU")


def with_engine(folder: Path) -> Bundle:
    engine = Engine("engines/a.plan", "engines/a.json", "model.onnx", "rtx", "fp32")
    with changed(folder, engines=(engine,)) as draft:
        draft.path(engine.file).write_bytes(b"a plan")
        draft.path(engine.sidecar).write_text("{}")
    return Bundle.open(folder)


@no_gpu
def test_auto_takes_the_cpu_and_says_why(bundle_folder: Path) -> None:
    for bundle in (Bundle.open(bundle_folder), with_engine(bundle_folder)):
        opened = open_backend(bundle)
        with opened.backend as backend:
            assert backend.name == "cpu"
        assert opened.reason.startswith(f"{cuda_devices().problem}; not verified here")
        assert f"sad-deploy export {bundle_folder} adds them" in opened.reason


@no_gpu
@pytest.mark.parametrize("choice", [BackendChoice.CUDA, BackendChoice.RTX])
def test_backend_asked_for_by_name_never_falls_back(bundle_folder: Path, choice: BackendChoice) -> None:
    with pytest.raises(BackendError, match=f"the {choice} backend needs an NVIDIA GPU"):
        open_backend(with_engine(bundle_folder), choice)


@pytest.mark.parametrize("choice", [BackendChoice.TENSORRT, BackendChoice.RTX])
def test_engine_that_was_not_built_says_how_to(bundle_folder: Path, choice: BackendChoice) -> None:
    with pytest.raises(BundleError) as caught:
        open_backend(Bundle.open(bundle_folder), choice)
    assert f"--trt --flavor {choice}" in str(caught.value.hint)


@pytest.mark.parametrize("choice", [BackendChoice.AUTO, BackendChoice.CPU])
def test_changed_graph_is_never_run(bundle_folder: Path, choice: BackendChoice) -> None:
    with (bundle_folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match="was changed"):
        open_backend(Bundle.open(bundle_folder), choice)


def test_bundle_that_was_not_exported_says_how_to(tmp_path: Path, model: LinearModel) -> None:
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "b", model, exported=False))
    with pytest.raises(UserError) as caught:
        open_backend(bundle)
    assert str(caught.value.hint).startswith("sad-deploy export")


def test_graph_that_does_not_fit_the_manifest_is_refused(bundle_folder: Path) -> None:
    manifest: Manifest = Bundle.open(bundle_folder).manifest
    preprocessing = Preprocessing(manifest.preprocessing.color, 9, (9, 9))
    with changed(bundle_folder, preprocessing=preprocessing):
        pass
    bundle = Bundle.open(bundle_folder)
    with pytest.raises(BundleError, match=r"takes images of \(3, 8, 8\), the manifest says \(3, 9, 9\)"):
        open_backend(bundle)


def test_engine_of_another_graph_is_stale(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be loaded without a GPU, hence the stand-in."""
    install(monkeypatch, Flavor.RTX)
    bundle = Bundle.open(bundle_folder)
    for graph_hash, is_stale in (("0" * 64, True), (bundle.manifest.files["model.onnx"], False)):
        with write_bundle(bundle_folder) as draft:
            draft.keep(bundle, *(name for name in bundle.manifest.files if name not in ENGINE_FILES))
            draft.path("engines/e.plan")
            write_engine(draft.root / "engines", Flavor.RTX, onnx_sha256=graph_hash)
            engine = Engine(*ENGINE_FILES, "model.onnx", "rtx", "fp32")
            draft.manifest = dataclasses.replace(bundle.manifest, files={}, engines=(engine,))
        bundle = Bundle.open(bundle_folder)
        # The stand-in's images are of another size, which is said too.
        with pytest.raises(BundleError, match="it takes images of") as caught:
            open_backend(bundle, BackendChoice.RTX)
        stale = "it is stale: model.onnx is not the graph that it was built from"
        assert (stale in caught.value.message) == is_stale
        assert str(caught.value.hint).startswith("sad-deploy export")


@no_gpu
def test_tf32_is_refused_by_the_cpu_but_no_reason_against_it_where_it_was_not_asked_for(
    bundle_folder: Path,
) -> None:
    bundle = Bundle.open(bundle_folder)
    with pytest.raises(BackendError, match="the cpu backend has no TF32") as caught:
        open_backend(bundle, BackendChoice.CPU, BackendOptions(tf32=True))
    assert "leave out --tf32" in str(caught.value.hint)
    with open_backend(bundle, options=BackendOptions(tf32=True)).backend as backend:
        assert backend.name == "cpu"
