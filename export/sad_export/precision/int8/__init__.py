"""8-bit integers, with ranges measured on real images.

:mod:`.integers` writes a graph that onnxruntime's CPU computes in integers, backward and all;
:mod:`.simulated` one that TensorRT does, whose backward stays in floats. Ranges come from onnxruntime's own
calibration. May import onnxruntime and the rest of ``sad_export``.
"""

from .integers import IntegerPass
from .plan import plan_integers
from .simulated import simulate_integers

__all__ = ["IntegerPass", "plan_integers", "simulate_integers"]
