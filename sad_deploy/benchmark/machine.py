"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from sad_runtime.devices import available_cores, cuda_devices, processor_name
from sad_runtime.version import __version__

# Of distributions that are there in several builds, only one is installed.
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "numpy", "pillow", "tensorrt-rtx", "tensorrt")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, system, GPUs, and the versions of what does the work; JSON values only."""
    versions = {"sad-deploy": __version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor_name(),
        "cores": available_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpus": [device.name for device in cuda_devices().devices],
        "versions": versions,
    }
