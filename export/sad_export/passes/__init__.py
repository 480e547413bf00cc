"""Rewrites that bring a forward graph into the form that the gradient rules read.

May import onnx, onnx-ir and numpy, and the registry of rules.
"""

from .blocked_affine import BlockedAffinePass
from .blocked_broadcast import BlockedBroadcastPass
from .blocked_groups import BlockedGroupsPass
from .einsum_letters import EinsumLettersPass
from .expand_functions import ExpandFunctionsPass
from .nested_concats import NestedConcatsPass
from .shapes import ShapesPass
from .strided_stem import StridedStemPass

__all__ = [
    "BlockedAffinePass",
    "BlockedBroadcastPass",
    "BlockedGroupsPass",
    "EinsumLettersPass",
    "ExpandFunctionsPass",
    "NestedConcatsPass",
    "ShapesPass",
    "StridedStemPass",
]
