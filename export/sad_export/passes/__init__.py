"""Rewrites that bring a forward graph into the form that the gradient rules read.

May import :mod:`sad_export.graph`, onnx, onnx-ir and numpy.
"""

from .einsum_letters import EinsumLettersPass
from .expand_functions import ExpandFunctionsPass
from .nested_concats import NestedConcatsPass
from .shapes import ShapesPass

__all__ = [
    "EinsumLettersPass",
    "ExpandFunctionsPass",
    "NestedConcatsPass",
    "ShapesPass",
]
