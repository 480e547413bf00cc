"""The three commands in a temporary folder, as a user types them: calibrate → export --trt → infer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ENTRY = [sys.executable, "-c", "from sad_deploy.cli import main; main()"]


def sad_deploy(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own and check its exit code."""
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "120"}
    run = subprocess.run([*ENTRY, *arguments], cwd=cwd, capture_output=True, text=True, env=environment)
    assert run.returncode == code, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which calibrate and export --trt have run; tests below only read the bundle or copy it."""
    root = tmp_path_factory.mktemp("job")
    calibrated = sad_deploy("calibrate", "--batches", "4", cwd=root)
    assert "clean accuracy" in calibrated.stdout
    exported = sad_deploy("export", "--trt", "--batch", "1:4:8", cwd=root)
    assert "saliency cosine min" in exported.stdout
    images = root / "images" / "nested"
    images.mkdir(parents=True)
    with np.load(root / "sad-model" / "samples.npz") as samples:
        for i, (image, label) in enumerate(zip(samples["images"][:20], samples["labels"], strict=False)):
            Image.fromarray(image[0]).save(images / f"{i:02d}_{label}.png")
    return root


def manifest(folder: Path) -> dict:
    loaded: dict = json.loads((folder / "sad-model" / "manifest.json").read_text())
    return loaded


def test_the_bundle_holds_graph_engine_and_figures(folder: Path) -> None:
    graph, for_cpu = manifest(folder)["graphs"]
    assert (graph["target"], for_cpu["target"]) == ("portable", "cpu")
    (engine,) = manifest(folder)["engines"]
    assert graph["verification"]["label_agreement"] == 1
    assert graph["verification"]["saliency_cosine_median"] > 0.9999
    assert (folder / "sad-model" / engine["file"]).stat().st_size > 10_000
    sidecar = json.loads((folder / "sad-model" / engine["sidecar"]).read_text())
    assert sidecar["batch"] == [1, 4, 8]
    assert sidecar["onnx_sha256"] == manifest(folder)["files"][graph["file"]]


def test_the_graph_is_portable(folder: Path) -> None:
    model = onnx.load(str(folder / "sad-model" / "model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for n in (1, 5):
        logits, saliency, plain = session.run(None, {"image": np.full((n, 1, 16, 16), 0.5, np.float32)})
        assert (logits.shape, saliency.shape, plain.shape) == ((n, 10), (n, 1, 16, 16), (n, 10))


def test_infer_classifies_the_images(folder: Path) -> None:
    sad_deploy("infer", "images/", "--out", "rows.jsonl", "--saliency", "overlays", cwd=folder)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    right = sum(Path(row["path"]).stem[-1] == row["class"] for row in rows)
    assert right >= 18
    assert len(list((folder / "overlays").rglob("*.png"))) == 20


def test_exporting_again_replaces_the_engine_and_keeps_the_weights(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder / "sad-model", tmp_path / "sad-model")
    before = manifest(folder)["files"]
    sad_deploy("export", "--conv-gradient", "conv", cwd=tmp_path)
    after = manifest(tmp_path)
    assert after["engines"] == []
    assert not (tmp_path / "sad-model" / "engines").exists()
    assert {graph["conv_gradient"] for graph in after["graphs"]} == {"conv"}
    assert after["files"]["weights.safetensors"] == before["weights.safetensors"]
    sad_deploy("inspect", cwd=tmp_path)


def test_a_changed_weight_file_is_refused_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder / "sad-model", tmp_path / "sad-model")
    path = tmp_path / "sad-model" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    before = sorted((tmp_path / "sad-model").rglob("*"))
    run = sad_deploy("export", cwd=tmp_path, code=2)
    assert run.stderr.startswith("error: ")
    assert "weights.safetensors" in run.stderr
    assert sorted((tmp_path / "sad-model").rglob("*")) == before


def test_a_manifest_that_contradicts_its_graph_is_refused(folder: Path, tmp_path: Path) -> None:
    """η is a constant of the graph: changing the manifest alone would change nothing but what it says."""
    import shutil

    shutil.copytree(folder / "sad-model", tmp_path / "sad-model")
    changed = manifest(folder)
    changed["defence"]["eta"] += 0.5
    (tmp_path / "sad-model" / "manifest.json").write_text(json.dumps(changed))
    run = sad_deploy("infer", str(folder / "images"), cwd=tmp_path, code=2)
    assert "in the graph and" in run.stderr


def test_an_engine_needs_a_gpu_to_run(folder: Path) -> None:
    from sad_runtime.devices import cuda_devices

    if cuda_devices().count:
        pytest.skip("this machine has a GPU")
    run = sad_deploy("infer", "images/", "--backend", "rtx", cwd=folder, code=2)
    assert "needs an NVIDIA GPU" in run.stderr
    run = sad_deploy("infer", "images/", "--backend", "cuda", cwd=folder, code=2)
    assert "needs an NVIDIA GPU" in run.stderr


def test_export_without_sample_images_says_what_to_do(tmp_path: Path) -> None:
    sad_deploy("calibrate", "--batches", "2", "--eta", "0.1", "--samples", "0", cwd=tmp_path)
    run = sad_deploy("export", cwd=tmp_path, code=2)
    assert "--samples 64" in run.stderr
    assert manifest(tmp_path)["graphs"] == []
