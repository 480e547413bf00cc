"""Operators that move elements without changing them: the gradient moves them back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .emitter import Emitter, constant_array, shape_of, static
from .rules import Gradients, attribute, operand, vjp


@vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze", inputs=[0])
def reshape(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy in x's shape."""
    x = operand(node, 0)
    return (b.reshape(dy, shape_of(x)), *[None] * (len(node.inputs) - 1))


@vjp("Transpose")
def transpose(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """The inverse permutation."""
    rank = len(shape_of(dy))
    perm = attribute(node, "perm", tuple(reversed(range(rank))))
    return (b.transpose(dy, [int(axis) for axis in np.argsort(perm)]),)


@vjp("Concat")
def concat(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """Each input gets its own slice of dy."""
    axis = attribute(node, "axis", 0) % len(shape_of(dy))
    gradients: list[ir.Value | None] = []
    start = 0
    for value in node.inputs:
        assert value is not None
        end = start + static(shape_of(value)[axis])
        gradients.append(b.slice(dy, [axis], [start], [end], [1]) if b.wants(value) else None)
        start = end
    return tuple(gradients)


@vjp("Pad", inputs=[0], refuses=lambda node: _refuse_pad(node))
def pad(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """Constant padding: dx is dy without the border (and with zeros where padding was negative)."""
    x = operand(node, 0)
    axes, begins, ends = _pads(node, len(shape_of(x)))
    dx = b.pad(dy, axes, [-n for n in begins], [-n for n in ends])
    return (dx, *[None] * (len(node.inputs) - 1))


def _pads(node: ir.Node, rank: int) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    given = constant_array(node.inputs[1])
    assert given is not None
    chosen = constant_array(node.inputs[3]) if len(node.inputs) > 3 else None
    axes = list(range(rank)) if chosen is None else [int(axis) % rank for axis in chosen]
    amounts = {
        axis: (int(begin), int(end))
        for axis, begin, end in zip(axes, given, given[len(axes) :], strict=False)
    }
    used = [axis for axis in axes if amounts[axis] != (0, 0)]
    return used, [amounts[axis][0] for axis in used], [amounts[axis][1] for axis in used]


def _refuse_pad(node: ir.Node) -> str | None:
    if (mode := attribute(node, "mode", "constant")) != "constant":
        return f"Pad in mode {mode}"
    if constant_array(node.inputs[1]) is None:
        return "Pad by a computed amount"
    return None
