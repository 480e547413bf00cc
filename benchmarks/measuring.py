"""What every benchmark states beside its figures: machine, versions, date; and where they go."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from sad_runtime.devices import processor_name

_PACKAGES = (
    "sad-deploy",
    "torch",
    "torchvision",
    "onnx",
    "onnx-ir",
    "onnxruntime-gpu",
    "onnxruntime",
    "openvino",
    "tensorrt-rtx",
    "tensorrt",
    "cuda-bindings",
    "numpy",
)


def machine() -> dict[str, Any]:
    """Processor, cores, Python and the versions of what was measured."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": versions,
    }


def write_results(path: Path, results: dict[str, Any], *, quiet: bool = False) -> None:
    """Write figures as JSON and say where, unless they are not the last ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if not quiet:
        print(f"written to {path}")
