"""What runs a two-pass graph: onnxruntime on CPU and CUDA, and engines of either TensorRT flavor.

All of them differ only behind :class:`Backend`. Imports onnxruntime, TensorRT and CUDA only when one is
opened.
"""

from .choose import OpenedBackend, open_backend
from .protocol import Backend

__all__ = ["Backend", "OpenedBackend", "open_backend"]
