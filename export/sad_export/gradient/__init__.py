"""Reverse-mode differentiation of ONNX graphs, with standard operators only.

:mod:`.reverse` walks, :mod:`.rules` keeps the registry, every other module holds the rules of one family.
Importing the package registers them all. May import numpy and onnx-ir.
"""

from . import (
    activation,
    convolution,
    elementwise,
    indexing,
    linear,
    norm_pooling,
    normalization,
    pooling,
    precision,
    reduction,
    resize,
    shape,
    transposed_convolution,
)
from .emitter import Dgrad, Emitter, Target
from .reverse import reverse, without_rule
from .rules import covered
from .seed import seed_at_maximum

__all__ = ["Dgrad", "Emitter", "Target", "covered", "reverse", "seed_at_maximum", "without_rule"]
