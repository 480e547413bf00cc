"""TensorRT engines from ONNX graphs: which package (:mod:`.flavors`) and the build (:mod:`.build`).

May import numpy and ``sad_runtime``; TensorRT only when an engine is built.
"""

from sad_runtime.tensorrt import EngineInfo

from .build import build_engine
from .flavors import choose_flavor

__all__ = ["EngineInfo", "build_engine", "choose_flavor"]
