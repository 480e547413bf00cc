"""Reading and writing at indices that vary within the image: the gradient of one is the other.

Indices may be computed. Where several reads meet in one place, their gradients are summed
(``reduction="add"``, opset 16).
"""

from __future__ import annotations

import onnx_ir as ir

from .emitter import Emitter, Unsupported, shape_of
from .rules import Gradients, attribute, only_first, operand, vjp


@vjp("GatherElements", inputs=[0])
def gather_elements(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x[indices] along one axis: dx is dy added at the indices."""
    x, indices = operand(node, 0), operand(node, 1)
    axis = attribute(node, "axis", 0)
    _needs_reduction(b)
    return only_first(node, b.op("ScatterElements", _zeros(b, x), indices, dy, axis=axis, reduction="add"))


@vjp("GatherND", inputs=[0])
def gather_nd(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x[indices], index vectors over the first axes: dx is dy added at the indices."""
    if attribute(node, "batch_dims", 0):
        raise Unsupported("it has batch_dims, which ScatterND has not")
    _needs_reduction(b)
    x, indices = operand(node, 0), operand(node, 1)
    return only_first(node, b.op("ScatterND", _zeros(b, x), indices, dy, reduction="add"))


@vjp("ScatterElements", "Scatter", inputs=[0, 2])
def scatter_elements(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x with updates written along one axis: dx is dy with zeros there, dupdates is dy there."""
    _refuse_reduction(node)
    indices, updates = operand(node, 1), operand(node, 2)
    axis = attribute(node, "axis", 0)
    dx = du = None
    if b.wants(node.inputs[0]):
        dx = b.op("ScatterElements", dy, indices, _zeros(b, updates), axis=axis)
    if b.wants(updates):
        du = b.op("GatherElements", dy, indices, axis=axis, shape=shape_of(updates))
    return dx, None, du


@vjp("ScatterND", inputs=[0, 2])
def scatter_nd(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x with updates written at index vectors: dx is dy with zeros there, dupdates is dy there."""
    _refuse_reduction(node)
    indices, updates = operand(node, 1), operand(node, 2)
    dx = du = None
    if b.wants(node.inputs[0]):
        dx = b.op("ScatterND", dy, indices, _zeros(b, updates))
    if b.wants(updates):
        du = b.op("GatherND", dy, indices, shape=shape_of(updates))
    return dx, None, du


def _needs_reduction(b: Emitter) -> None:
    if b.opset < 16:
        raise Unsupported("its gradient needs opset 16")


def _refuse_reduction(node: ir.Node) -> None:
    if (reduction := attribute(node, "reduction", "none")) != "none":
        raise Unsupported(f"its reduction is {reduction!r}")


def _zeros(b: Emitter, value: ir.Value) -> ir.Value:
    """Zeros of a value's shape, whatever the batch."""
    return b.op("Mul", value, b.like(value, 0.0))
