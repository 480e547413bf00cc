"""8-bit integers, with ranges measured on real images.

:mod:`.cpu` writes a graph that onnxruntime's CPU computes in integers, backward and all;
:mod:`.qdq` one that TensorRT does, whose backward stays in floats. Ranges come from onnxruntime's own
calibration. May import onnxruntime and the rest of ``sad_export``.
"""

from .cpu import IntegerPass
from .plan import plan_integers
from .qdq import simulate_integers

__all__ = ["IntegerPass", "plan_integers", "simulate_integers"]
