"""Precision in the graph's own types: TensorRT's networks are strongly typed and take none from outside.

:func:`lower` writes a float32 two-pass graph in fp16, bf16 or int8, and a float32 twin that rounds like it;
:func:`lower_to_integers` one in int8 for onnxruntime's CPU. May import onnx, onnx-ir, numpy, onnxruntime and
the rest of ``sad_export``.
"""

from sad_runtime.choices import Precision, Ranges

from .convert import PRECISION_KEY, Lowered, lower, lower_to_integers
from .scale import gradient_scales
from .variant import FP32, Variant
from .verified import write_verified

__all__ = [
    "FP32",
    "PRECISION_KEY",
    "Lowered",
    "Precision",
    "Ranges",
    "Variant",
    "gradient_scales",
    "lower",
    "lower_to_integers",
    "write_verified",
]
