"""What a serving host needs: the bundle format, image reading, backends, the folder pipeline, results.

May import numpy, pillow and onnxruntime, and TensorRT lazily; never torch, onnx or the other two rooms. The
names below are imported when first used: ``import sad_runtime`` alone loads neither numpy nor onnxruntime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .batching import Batching
    from .bundle import Bundle, check_destination, write_bundle
    from .classifier import Classifier
    from .errors import (
        BackendError,
        BadImagesError,
        BundleError,
        ErrorCode,
        ImageError,
        QueueFullError,
        UserError,
    )
    from .given import preprocess
    from .manifest import Manifest
    from .pipeline import Options, classify
    from .prediction import Prediction
    from .results import Row, Summary
    from .run import JournaledRun, RunOptions
    from .sources import Shard, open_sources

_HOMES = {
    "BackendError": "errors",
    "BadImagesError": "errors",
    "Batching": "batching",
    "Bundle": "bundle",
    "BundleError": "errors",
    "Classifier": "classifier",
    "ErrorCode": "errors",
    "ImageError": "errors",
    "JournaledRun": "run",
    "Manifest": "manifest",
    "Options": "pipeline",
    "Prediction": "prediction",
    "QueueFullError": "errors",
    "Row": "results",
    "RunOptions": "run",
    "Summary": "results",
    "UserError": "errors",
    "check_destination": "bundle",
    "classify": "pipeline",
    "Shard": "sources",
    "open_sources": "sources",
    "preprocess": "given",
    "write_bundle": "bundle",
}

__all__ = [
    "BackendError",
    "BadImagesError",
    "Batching",
    "Bundle",
    "BundleError",
    "Classifier",
    "ErrorCode",
    "ImageError",
    "JournaledRun",
    "Manifest",
    "Options",
    "Prediction",
    "QueueFullError",
    "Row",
    "RunOptions",
    "Shard",
    "Summary",
    "UserError",
    "__version__",
    "check_destination",
    "classify",
    "open_sources",
    "preprocess",
    "write_bundle",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
