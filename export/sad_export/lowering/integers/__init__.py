"""What integers on onnxruntime's CPU want of the float graph."""

from .strided_stem import StridedStemPass
from .words import Integers

__all__ = ["Integers", "StridedStemPass"]
