"""Pools: every output hands its gradient to the inputs that it was computed from.

MaxPool        dx[p] = Σ_o dy[o] · 1[p is the first maximum of window o]
AveragePool    dx[p] = Σ_{o ∋ p} dy[o] / count(o)
LpPool         y = (Σ|x|^p)^(1/p) over the window, so dx = sign(x)·|x|^(p−1) · Σ_windows dy·y^(1−p)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...graph.expression import Expr
from ...graph.functions import abs_, equal, sign
from ...graph.nodes import attribute, operand, sole_reader
from ...graph.values import Unsupported, static
from ..axes import Axis, identity_axis, window_axes
from ..registry import Gradient, pattern, vjp
from ..windows import gather, scatter, sum_over_windows
from ..words import Words
from .reduction import not_zero

# Stands for "outside the input" in comparisons with a window's maximum. Finite, and within fp16.
_LOWEST = -65504.0


@vjp("MaxPool", inputs=[0], quantized=True)
def max_pool(x: Expr, *, y: Expr, dy: Expr, g: Words, node: ir.Node) -> Gradient:
    """The first maximum in scan order takes the gradient, as in PyTorch.

    With r the maxima along the rows, y are the maxima of r along the columns, and the first one in scan order
    is the first of its row, in the first row that has one. So dy may go to r, and from there to x.
    """
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise Unsupported("its Indices output is used")
    return _max_pool(g, x.cast(dy), y.cast(dy), dy, node)  # quantised integers are compared as floats


def _max_pool(g: Words, x: Expr, y: Expr, dy: Expr, node: ir.Node) -> Expr:
    axes = window_axes(node, attribute(node, "kernel_shape", ()))
    if not g.pools_by_rows(axes):
        return _to_first_maximum(g, x, y, dy, axes)
    rows, columns = axes
    r = _maxima_along_rows(x, columns)
    dr = _to_first_maximum(g, r, y, dy, [rows, identity_axis(columns.out)])
    return _to_first_maximum(g, x, r, dr, [identity_axis(rows.size), columns])


def _relu_below(node: ir.Node) -> list[ir.Value] | None:
    """z and x = max(z, 0), where a MaxPool is all that reads x."""
    x = operand(node, 0)
    producer = x.producer()
    if producer is None or producer.op_type != "Relu" or producer.domain or sole_reader(x) is not node:
        return None
    return [operand(producer, 0), x]


@pattern("MaxPool", _relu_below)
def max_pool_of_relu(z: Expr, x: Expr, *, y: Expr, dy: Expr, g: Words, node: ir.Node) -> Gradient:
    """The ReLU's mask is applied to dy, where there are fewer elements.

    The chosen x[p] is y, so that 1[x[p] > 0] = 1[y > 0].
    """
    return _max_pool(g, x, y, g.where_positive(y, dy), node)


def _maxima_along_rows(x: Expr, columns: Axis) -> Expr:
    """(N, C, H, W) → (N, C, H, out)."""
    return x.op(
        "MaxPool",
        shape=(*x.shape[:3], columns.out),
        kernel_shape=[1, columns.kernel],
        strides=[1, columns.stride],
        dilations=[1, columns.dilation],
        pads=[0, columns.begin, 0, max(0, -columns.remainder)],
    )


def _to_first_maximum(g: Words, x: Expr, y: Expr, dy: Expr, axes: Sequence[Axis]) -> Expr:
    """dy at the first element of each window that equals its maximum y, summed over the windows.

    Without the operator's Indices, which TensorRT refuses: each tap's input is compared with the maximum,
    and a window that has found its maximum is closed for the taps after it.
    """
    read = gather(g, x, axes, fill=_LOWEST)
    contributions = {}
    still_open: Expr | None = None
    for i, (tap, value) in enumerate(read.items()):
        first = equal(value, y)
        if still_open is not None:
            first = first & still_open
        contributions[tap] = dy * first
        if i < len(read) - 1:
            # Xor closes: `first` holds only where the window was open.
            still_open = ~first if still_open is None else still_open ^ first
    return scatter(g, contributions, axes)


@vjp("AveragePool")
def average_pool(x: Expr, *, dy: Expr, g: Words, node: ir.Node, count_include_pad: int = 0) -> Gradient:
    """Each tap gets the same share; windows at the border may count fewer elements."""
    axes = window_axes(node, attribute(node, "kernel_shape", ()))
    counts = _counts(axes, include_pad=count_include_pad == 1)
    if (counts == counts.flat[0]).all():
        return sum_over_windows(g, dy * (1.0 / float(counts.flat[0])), axes)
    return sum_over_windows(g, dy * (1.0 / counts[None, None]), axes)


def _counts(axes: Sequence[Axis], *, include_pad: bool) -> np.ndarray[Any, Any]:
    """How many elements each window averages, of shape ``out``.

    Padding counts if asked for, but what ceil_mode adds beyond the padding never does.
    """
    per_axis = []
    for axis in axes:
        low, high = (-axis.begin, axis.size + axis.end) if include_pad else (0, axis.size)
        first = np.arange(axis.out)[:, None] * axis.stride - axis.begin
        positions = first + np.arange(axis.kernel)[None] * axis.dilation
        per_axis.append(((positions >= low) & (positions < high)).sum(1).astype(np.float64))
    return functools.reduce(np.multiply.outer, per_axis)


@vjp("LpPool")
def lp_pool(x: Expr, *, y: Expr, dy: Expr, g: Words, node: ir.Node, p: int = 2) -> Gradient:
    """Windows that overlap: each tap gets its window's share."""
    axes = window_axes(node, attribute(node, "kernel_shape", ()))
    return _times_power(sum_over_windows(g, _share(y, dy, p), axes), x, p)


def _share(y: Expr, dy: Expr, p: int) -> Expr:
    """dy · y^(1−p); 0 where y is."""
    if p == 1:
        return dy
    y = not_zero(y)
    return dy / (y if p == 2 else y ** (p - 1))


def _times_power(share: Expr, x: Expr, p: int) -> Expr:
    """share · sign(x)·|x|^(p−1)."""
    if p == 1:
        return share * sign(x)
    return share * (x if p == 2 else sign(x) * abs_(x) ** (p - 1))


# Pools of the whole image


@vjp("GlobalAveragePool")
def global_average_pool(x: Expr, *, dy: Expr, g: Words) -> Gradient:
    """dx = dy / (H·W), repeated over the image."""
    return g.expand(dy * (1.0 / math.prod(static(n) for n in x.shape[2:])), x)


@vjp("GlobalMaxPool")
def global_max_pool(x: Expr, *, dy: Expr, g: Words) -> Gradient:
    """dy at the first maximum in scan order, as PyTorch's adaptive pool.

    ArgMax over the flat image gives it; comparing with all positions marks it.
    """
    batch, channels, *spatial = x.shape
    size = math.prod(static(n) for n in spatial)
    flat = x.reshape((batch, channels, size))
    first = flat.op("ArgMax", axis=2, keepdims=1, shape=(batch, channels, 1), dtype=ir.DataType.INT64)
    chosen = first.op("Equal", g.constant(np.arange(size)), shape=(batch, channels, size))
    return (chosen.cast(dy) * dy.reshape((batch, channels, 1))).reshape(x.shape)


@vjp("GlobalLpPool")
def global_lp_pool(x: Expr, *, y: Expr, dy: Expr, p: int = 2) -> Gradient:
    """One window."""
    return _times_power(_share(y, dy, p), x, p)
