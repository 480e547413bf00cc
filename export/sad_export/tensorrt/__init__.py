"""TensorRT engines from ONNX graphs: which package (:mod:`.flavors`) and the build (:mod:`.build`).

May import numpy, onnx and ``sad_runtime``; TensorRT only when an engine is built.
"""

from sad_runtime.choices import HardwareCompatibility
from sad_runtime.tensorrt import EngineInfo

from .build import build_engine
from .cache import EngineCache
from .errors import EngineError, UnbuildableError
from .flavors import choose_flavor
from .options import BuildOptions
from .request import EngineRequest

__all__ = [
    "BuildOptions",
    "EngineCache",
    "EngineError",
    "EngineInfo",
    "EngineRequest",
    "HardwareCompatibility",
    "UnbuildableError",
    "build_engine",
    "choose_flavor",
]
