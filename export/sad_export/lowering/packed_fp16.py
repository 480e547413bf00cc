"""The words for a graph that is lowered to fp16, where TensorRT for RTX packs some weights."""

from __future__ import annotations

import dataclasses

from sad_runtime.choices import ConvGradient

from ..gradient.convolution import Convolution
from ..graph.expression import Expr
from ..graph.values import static
from .portable import Portable

_PACKED_FROM = 256
"""Channels, in and out, from which on TensorRT for RTX packs the weight of a 1×1 convolution in fp16."""


class PackedFp16(Portable):
    """In fp16 neither ConvTranspose nor Conv lets TensorRT for RTX share the weight of a large 1×1 Conv.

    It packs the weight of a plain one by transposing it, and turns ConvTranspose into such a Conv: beside a
    packed forward weight either is a second copy. A Conv with padding is not packed, so that its Wᵀ stays,
    which is what the forward one was packed to (benchmarks/engine_size.py).
    """

    def conv_input(self, conv: Convolution, dy: Expr) -> Expr:
        """Over one row more than dy has, which is cut off again, where the weight is packed."""
        if self.conv_gradient is not ConvGradient.AUTO or conv.group != 1 or not _is_packed(conv):
            return super().conv_input(conv, dy)
        longer = dataclasses.replace(conv.axes[0], size=conv.axes[0].size + 1)
        return conv.over(longer, *conv.axes[1:]).at_stride_one(dy).pad([2], [0], [-1])


def _is_packed(conv: Convolution) -> bool:
    """Whether an fp16 engine holds the forward weight transposed: a large 1×1, alone or with its activation.

    A convolution that adds a residual or clips as it goes keeps its weight as it is. Where two convolutions
    are added, as in the first block of a ResNet's stage, the Add goes with the other one.
    """
    pointwise = all(axis.kernel == axis.stride == 1 and axis.begin == axis.end == 0 for axis in conv.axes)
    if not pointwise or min(static(n) for n in conv.weight.shape[:2]) < _PACKED_FROM:
        return False
    y = conv.node.outputs[0]
    readers = [use.node for use in y.uses()]
    others = [
        other.producer()
        for reader in readers
        if reader.op_type == "Add"
        for other in reader.inputs
        if other is not None and other is not y
    ]
    return not any(reader.op_type == "Clip" for reader in readers) and all(
        other is not None and other.op_type == "Conv" for other in others
    )
