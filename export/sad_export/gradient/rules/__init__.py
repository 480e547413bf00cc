"""The gradient rules, one family of operators a file; importing the package registers them all.

A rule may import :mod:`sad_export.graph`, the registry, and the mathematics of windows; never a lowering.
"""

from . import (
    activation,
    convolution,
    elementwise,
    indexing,
    linear,
    normalization,
    pooling,
    precision,
    reduction,
    resize,
    shape,
)
