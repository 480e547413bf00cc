"""Conv and ConvTranspose: each the other's transpose. Weight and bias are constants of a classifier."""

from __future__ import annotations

import onnx_ir as ir

from ...graph.expression import Expr
from ...graph.nodes import attribute
from ...graph.values import static
from ..convolution import Convolution
from ..registry import Gradient, vjp
from ..words import Words


@vjp("Conv", inputs=[0])
def conv(x: Expr, weight: Expr, bias: Expr | None = None, *, dy: Expr, g: Words, node: ir.Node) -> Gradient:
    """y[o] = Σ_j W[j] · x[o·s + j·d − p]; the forms of dx are in :mod:`sad_export.gradient.convolution`."""
    return g.conv_input(Convolution.of(g, node), dy)


@vjp("ConvTranspose", inputs=[0])
def conv_transpose(
    x: Expr, weight: Expr, bias: Expr | None = None, *, dy: Expr, node: ir.Node, group: int = 1
) -> Gradient:
    """y[o·s + j·d − p] += W[j]ᵀ · x[o], so dx[o] = Σ_j W[j] · dy[o·s + j·d − p].

    That is a Conv on the same initializer: the layout of its weight, (C, M/g, kH, kW), is the one that a Conv
    from M to C channels needs.
    """
    rank = x.rank - 2
    kernel = [static(n) for n in weight.shape[2:]]
    strides = attribute(node, "strides", (1,) * rank)
    dilations = attribute(node, "dilations", (1,) * rank)
    begins, ends = [], []
    for i, k in enumerate(kernel):
        size, out = static(x.shape[2 + i]), static(dy.shape[2 + i])
        whole = (size - 1) * strides[i] + (k - 1) * dilations[i] + 1
        begins.append(_begin(node, i, rank, whole - out))
        # What makes the Conv read exactly to the end; negative where output_padding went beyond it.
        ends.append(whole - out - begins[-1])
    dy = dy.pad(range(2, 2 + rank), [min(0, n) for n in begins], [min(0, n) for n in ends])
    return dy.op(
        "Conv",
        weight,
        shape=x.shape,
        kernel_shape=kernel,
        strides=list(strides),
        dilations=list(dilations),
        pads=[max(0, n) for n in (*begins, *ends)],
        group=group,
    )


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
