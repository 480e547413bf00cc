"""Pools: every output hands its gradient to the inputs that it was computed from.

MaxPool      dx[p] = Σ_o dy[o] · 1[p is the first maximum of window o]
AveragePool  dx[p] = Σ_{o ∋ p} dy[o] / count(o)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .emitter import Emitter, Target
from .rules import Gradients, attribute, operand, sole_reader, vjp
from .values import Unsupported, shape_of, static
from .windows import Axis, gather, scatter, taps, unmoved, window_axes

# Stands for "outside the input" in comparisons with a window's maximum. Finite, and within fp16.
_LOWEST = -65504.0


@vjp("MaxPool", inputs=[0])
def max_pool(b: Emitter, node: ir.Node, dy: ir.Value, *_: ir.Value | None) -> Gradients:
    """The first maximum in scan order takes the gradient, as in PyTorch.

    With r the maxima along the rows, y are the maxima of r along the columns, and the first one in scan order
    is the first of its row, in the first row that has one. So dy may go to r, and from there to x.

    Where x = max(z, 0), and nothing else reads x, the ReLU's mask is applied here, to dy: the chosen x[p]
    is y, so that 1[x[p] > 0] = 1[y > 0], and there are fewer y than x.
    """
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise Unsupported("its Indices output is used")
    x, y = operand(node, 0), node.outputs[0]
    producer = x.producer()
    if producer is not None and producer.op_type == "Relu" and masks_its_rectifier(sole_reader(x)):
        dy = b.where_positive(y, dy)
    axes = window_axes(node, attribute(node, "kernel_shape", ()))
    if not _goes_by_rows(b, axes):
        return (_to_first_maximum(b, x, y, dy, axes),)
    rows, columns = axes
    r = _maxima_along_rows(b, x, columns)
    dr = _to_first_maximum(b, r, y, dy, [rows, unmoved(columns.out)])
    return (_to_first_maximum(b, x, r, dr, [unmoved(rows.size), columns]),)


def _goes_by_rows(b: Emitter, axes: Sequence[Axis]) -> bool:
    """Whether rows first means fewer taps to compare, counted in elements of y.

    With a stride there are more rows of r than of y: a window of 3×3 at stride 2 gains nothing, at stride 1
    it has 6 comparisons instead of 9. In integers the maxima cost more than the comparisons.
    """
    if len(axes) != 2 or b.target is Target.INT8:
        return False
    rows, columns = axes
    return rows.kernel + columns.kernel * min(rows.stride, rows.kernel) < rows.kernel * columns.kernel


def _maxima_along_rows(b: Emitter, x: ir.Value, columns: Axis) -> ir.Value:
    """(N, C, H, W) → (N, C, H, out)."""
    return b.op(
        "MaxPool",
        x,
        shape=(*shape_of(x)[:3], columns.out),
        kernel_shape=[1, columns.kernel],
        strides=[1, columns.stride],
        dilations=[1, columns.dilation],
        pads=[0, columns.begin, 0, max(0, -columns.remainder)],
    )


def _to_first_maximum(b: Emitter, x: ir.Value, y: ir.Value, dy: ir.Value, axes: Sequence[Axis]) -> ir.Value:
    """dy at the first element of each window that equals its maximum y, summed over the windows.

    Without the operator's Indices, which TensorRT refuses: each tap's input is compared with the maximum,
    and a window that has found its maximum is closed for the taps after it.
    """
    read = gather(b, x, axes, fill=_LOWEST)
    contributions = {}
    open_windows = None
    for i, (tap, value) in enumerate(read.items()):
        first = b.op("Equal", value, y, dtype=ir.DataType.BOOL)
        if open_windows is not None:
            first = b.op("And", first, open_windows)
        contributions[tap] = b.masked(dy, first)
        if i < len(read) - 1:
            # Xor closes: `first` holds only where the window was open.
            open_windows = b.op("Not", first) if open_windows is None else b.op("Xor", open_windows, first)
    return scatter(b, contributions, axes)


def masks_its_rectifier(reader: ir.Node | None) -> bool:
    """Whether the only reader of a ReLU's output is a MaxPool, which then applies the ReLU's mask."""
    return reader is not None and reader.op_type == "MaxPool" and reader.domain in ("", "ai.onnx")


@vjp("AveragePool")
def average_pool(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """Each tap gets the same share; windows at the border may count fewer elements."""
    axes = window_axes(node, attribute(node, "kernel_shape", ()))
    counts = _counts(axes, include_pad=attribute(node, "count_include_pad", 0) == 1)
    if (counts == counts.flat[0]).all():
        share = b.scale(dy, 1.0 / float(counts.flat[0]))
    else:
        share = b.op("Mul", dy, b.like(dy, 1.0 / counts[None, None]))
    # The window is a product of intervals, so one axis after the other needs Σ k taps instead of Π k.
    for i, axis in enumerate(axes):
        others = [unmoved(static(n)) for n in shape_of(share)[2:]]
        line = [*others[:i], axis, *others[i + 1 :]]
        share = scatter(b, dict.fromkeys(taps(line), share), line)
    return (share,)


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


@vjp("GlobalAveragePool")
def global_average_pool(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy / (H·W), repeated over the image."""
    x = operand(node, 0)
    size = math.prod(static(n) for n in shape_of(x)[2:])
    return (b.expand(b.scale(dy, 1.0 / size), x),)
