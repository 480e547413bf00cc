"""What runs a two-pass graph: onnxruntime on CPU and CUDA, OpenVINO, and engines of either TensorRT flavor.

All of them differ only behind :class:`Backend`. Imports onnxruntime, OpenVINO, TensorRT and CUDA only
when one is opened.
"""

from .choose import OpenedBackend, open_backend
from .load import BackendOptions
from .protocol import Backend

__all__ = ["Backend", "BackendOptions", "OpenedBackend", "open_backend"]
