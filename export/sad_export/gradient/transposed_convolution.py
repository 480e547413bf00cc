"""ConvTranspose: y[o·s + j·d − p] += W[j]ᵀ · x[o], so dx[o] = Σ_j W[j] · dy[o·s + j·d − p].

That is a Conv on the same initializer: the layout of its weight, (C, M/g, kH, kW), is the one that a Conv
from M to C channels needs.
"""

from __future__ import annotations

import onnx_ir as ir

from .emitter import Emitter
from .rules import Gradients, attribute, only_first, operand, vjp
from .values import shape_of, static


@vjp("ConvTranspose", inputs=[0])
def conv_transpose(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """Gradient of the image; weight and bias are constants of a classifier."""
    x, weight = operand(node, 0), operand(node, 1)
    rank = len(shape_of(x)) - 2
    kernel = [static(n) for n in shape_of(weight)[2:]]
    strides = attribute(node, "strides", (1,) * rank)
    dilations = attribute(node, "dilations", (1,) * rank)
    begins, ends = [], []
    for i, k in enumerate(kernel):
        size, out = static(shape_of(x)[2 + i]), static(shape_of(dy)[2 + i])
        whole = (size - 1) * strides[i] + (k - 1) * dilations[i] + 1
        begin = _begin(node, i, rank, whole - out)
        begins.append(begin)
        # What makes the Conv read exactly to the end; negative where output_padding went beyond it.
        ends.append(whole - out - begin)
    spatial = range(2, 2 + rank)
    dy = b.pad(dy, spatial, [min(0, n) for n in begins], [min(0, n) for n in ends])
    dx = b.op(
        "Conv",
        dy,
        weight,
        shape=shape_of(x),
        kernel_shape=kernel,
        strides=list(strides),
        dilations=list(dilations),
        pads=[max(0, n) for n in (*begins, *ends)],
        group=attribute(node, "group", 1),
    )
    return only_first(node, dx)


def _begin(node: ir.Node, axis: int, rank: int, cropped: int) -> int:
    """The padding before one axis, of which ``cropped`` positions were cut off in all.

    An ``output_shape`` divides them over both ends, as SAME_UPPER and SAME_LOWER do: with the odd one at the
    end for SAME_UPPER, at the beginning otherwise (operator specification of ConvTranspose).
    """
    auto_pad = attribute(node, "auto_pad", "NOTSET")
    if auto_pad == "VALID":
        return 0
    padding = attribute(node, "output_padding", (0,) * rank)[axis]
    if auto_pad == "NOTSET" and "output_shape" not in node.attributes:
        return int(attribute(node, "pads", (0,) * 2 * rank)[axis])
    total = max(0, cropped + padding)
    return int(total // 2 if auto_pad == "SAME_UPPER" else total - total // 2)
