"""Engines: what building and running one share (packages, log, the file beside an engine), and running.

May import numpy and this room; TensorRT and CUDA only when they are asked for.
"""

from .flavors import Flavor
from .loading import error_log, load_tensorrt
from .sidecar import EngineInfo, read_sidecar

__all__ = ["EngineInfo", "Flavor", "error_log", "load_tensorrt", "read_sidecar"]
