"""What every gradient rule may assume of a forward graph, and the rewrites that bring it there.

May import :mod:`sad_export.graph`, onnx, onnx-ir and numpy.
"""

from .einsum_letters import EinsumLettersPass
from .expand_functions import ExpandFunctionsPass
from .flat_views import FlatViewsPass
from .nested_concats import NestedConcatsPass
from .shapes import ShapesPass

__all__ = [
    "EinsumLettersPass",
    "ExpandFunctionsPass",
    "FlatViewsPass",
    "NestedConcatsPass",
    "ShapesPass",
]
