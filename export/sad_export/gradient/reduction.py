"""Reductions: the gradient of a sum is repeated over what was summed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from .emitter import Emitter, constant_array, shape_of, static
from .rules import Gradients, attribute, operand, vjp


@vjp("ReduceMean", "ReduceSum", inputs=[0], refuses=lambda node: _refuse_axes(node))
def reduce_mean_or_sum(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """Sum: dx = dy, repeated; mean: divided by how many were averaged."""
    x = operand(node, 0)
    axes = _axes(node, len(shape_of(x)))
    rest = [None] * (len(node.inputs) - 1)
    if not axes:
        return (dy, *rest)
    kept = [1 if axis in axes else n for axis, n in enumerate(shape_of(x))]
    dx = b.reshape(dy, kept)
    if node.op_type == "ReduceMean":
        dx = b.scale(dx, 1.0 / math.prod(static(shape_of(x)[axis]) for axis in axes))
    return (b.expand(dx, shape_of(x)), *rest)


def _axes(node: ir.Node, rank: int) -> Sequence[int]:
    """The reduced axes: an input from opset 13 (sum) or 18 (mean) on, an attribute before; all by default."""
    given = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = attribute(node, "axes", ()) if given is None else given.tolist()
    if not axes and not attribute(node, "noop_with_empty_axes", 0):
        axes = range(rank)
    return sorted(int(axis) % rank for axis in axes)


def _refuse_axes(node: ir.Node) -> str | None:
    x = node.inputs[0]
    if len(node.inputs) > 1 and node.inputs[1] is not None and constant_array(node.inputs[1]) is None:
        return f"{node.op_type} over computed axes"
    if x is not None and x.shape is not None:
        reduced = (list(shape_of(x))[axis] for axis in _axes(node, len(x.shape)))
        if any(isinstance(n, str) for n in reduced):
            return f"{node.op_type} over the batch"
    return None
