"""What importing and running costs: a serving host has neither torch nor onnx."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def modules_after(code: str, *arguments: object) -> set[str]:
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_errors_and_manifest_import_neither_numpy_nor_onnxruntime() -> None:
    modules = ("errors", "manifest", "bundle", "devices", "choices")
    loaded = modules_after("\n".join(f"import sad_runtime.{module}" for module in modules))
    assert not {"numpy", "onnxruntime", "PIL"} & loaded


def test_every_public_name_is_there_and_needs_neither_torch_nor_onnx() -> None:
    code = "import sad_runtime\nfor name in sad_runtime.__all__: getattr(sad_runtime, name)"
    loaded = modules_after(code)
    assert "sad_runtime.pipeline" in loaded
    assert not {"torch", "torchvision", "onnx", "onnx_ir", "onnxruntime", "tensorrt_rtx", "cuda"} & loaded


def test_inference_uses_neither_torch_nor_onnx(bundle_folder: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "image.png")
    code = """
import sys
from pathlib import Path
from sad_runtime import Classifier, open_sources
from sad_runtime.overlay import OverlayWriter
with Classifier.load(sys.argv[1]) as classifier, open_sources([sys.argv[2]]) as sources:
    overlays = OverlayWriter(sys.argv[3], sources.base)
    rows = list(classifier.stream(sources, pictures=[overlays]))
assert len(rows) == 1 and not rows[0].error
"""
    loaded = modules_after(code, bundle_folder, tmp_path / "image.png", tmp_path / "overlays")
    assert "onnxruntime" in loaded
    assert not {"torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "sad_export", "sad_deploy"} & loaded
