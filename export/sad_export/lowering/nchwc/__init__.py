"""onnxruntime's NCHWc layout: which values are in it, the words that keep it, and the forward rewrites.

The passes are rewritten to the same three forms that the words write.
"""

from .affine import NchwcAffinePass
from .broadcast import NchwcBroadcastPass
from .groups import NchwcGroupsPass
from .words import Nchwc

__all__ = ["Nchwc", "NchwcAffinePass", "NchwcBroadcastPass", "NchwcGroupsPass"]
