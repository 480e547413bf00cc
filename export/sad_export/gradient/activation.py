"""Activations. Each derivative is written in the output y where it can be, so that the fused
Conv + activation of the forward graph stays fused: nothing else then reads what lies between them.
"""

from __future__ import annotations

import onnx_ir as ir

from .emitter import Emitter, constant_array, dtype_of, shape_of
from .rules import Gradients, attribute, operand, vjp


@vjp("Relu")
def relu(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · 1[y > 0]; 0 at the kink, as in PyTorch."""
    return (b.where_positive(node.outputs[0], dy),)


@vjp("LeakyRelu")
def leaky_relu(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · (x > 0 ? 1 : α). The sign is x's: α may be negative."""
    x = operand(node, 0)
    positive = b.op("Greater", x, b.like(x, 0.0), dtype=ir.DataType.BOOL)
    return (
        b.op(
            "Where",
            positive,
            dy,
            b.scale(dy, attribute(node, "alpha", 0.01)),
            shape=shape_of(dy),
            dtype=dtype_of(dy),
        ),
    )


@vjp("Clip", inputs=[0], refuses=lambda node: _refuse_computed_bounds(node))
def clip(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · 1[low < y < high]; 0 at both kinks, as PyTorch's ReLU6."""
    y = node.outputs[0]
    low, high = (constant_array(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2))
    inside = []
    if low is not None:
        inside.append(b.op("Greater", y, b.like(y, float(low)), dtype=ir.DataType.BOOL))
    if high is not None:
        inside.append(b.op("Less", y, b.like(y, float(high)), dtype=ir.DataType.BOOL))
    if not inside:
        return (dy, *[None] * (len(node.inputs) - 1))
    condition = inside[0] if len(inside) == 1 else b.op("And", *inside)
    return (b.masked(dy, condition), *[None] * (len(node.inputs) - 1))


def _refuse_computed_bounds(node: ir.Node) -> str | None:
    bounds = [value for value in node.inputs[1:] if value is not None]
    return "Clip with computed bounds" if any(value.const_value is None for value in bounds) else None


@vjp("Sigmoid")
def sigmoid(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · y·(1 − y)."""
    y = node.outputs[0]
    return (b.op("Mul", dy, b.op("Mul", y, b.op("Sub", b.like(y, 1.0), y, shape=shape_of(y)))),)


@vjp("Tanh")
def tanh(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · (1 − y²)."""
    y = node.outputs[0]
    return (b.op("Mul", dy, b.op("Sub", b.like(y, 1.0), b.op("Mul", y, y), shape=shape_of(y))),)
