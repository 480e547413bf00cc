"""What building and running an engine share: the two packages, their log, and the file beside an engine.

May import numpy and this room; TensorRT only when it is asked for.
"""

from .flavors import Flavor
from .loading import error_log, load_tensorrt
from .sidecar import EngineInfo, read_sidecar

__all__ = ["EngineInfo", "Flavor", "error_log", "load_tensorrt", "read_sidecar"]
