"""Arithmetic, element by element, with broadcasting undone in one place (:meth:`Emitter.unbroadcast`)."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from .emitter import Emitter, shape_of
from .rules import Gradients, no_gradient, operand, vjp

no_gradient("Shape", "Size", "ArgMax", "ArgMin", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")
no_gradient("And", "Or", "Xor", "Not", "Sign", "Floor", "Ceil", "Round", "IsNaN", "IsInf", "ConstantOfShape")


def _gradients(b: Emitter, node: ir.Node, *parts: Callable[[], ir.Value]) -> Gradients:
    """One gradient per input, written only where it is wanted."""
    return tuple(part() if b.wants(value) else None for value, part in zip(node.inputs, parts, strict=True))


@vjp("Identity")
def identity(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy."""
    return (dy,)


@vjp("Dropout", inputs=[0])
def dropout(b: Emitter, node: ir.Node, dy: ir.Value, *_: ir.Value | None) -> Gradients:
    """Inference: dx = dy."""
    return (dy, *[None] * (len(node.inputs) - 1))


@vjp("Add")
def add(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """da = dy, db = dy."""
    x, z = operand(node, 0), operand(node, 1)
    return _gradients(b, node, lambda: b.unbroadcast(dy, x), lambda: b.unbroadcast(dy, z))


@vjp("Sum")
def sum_(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """Dy for every term."""
    return tuple(
        b.unbroadcast(dy, term) if term is not None and b.wants(term) else None for term in node.inputs
    )


@vjp("Sub")
def sub(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """da = dy, db = −dy."""
    x, z = operand(node, 0), operand(node, 1)
    return _gradients(b, node, lambda: b.unbroadcast(dy, x), lambda: b.unbroadcast(b.op("Neg", dy), z))


@vjp("Neg")
def neg(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = −dy."""
    return (b.op("Neg", dy),)


@vjp("Mul")
def mul(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """da = dy·b, db = dy·a."""
    x, z = operand(node, 0), operand(node, 1)
    return _gradients(
        b,
        node,
        lambda: b.unbroadcast(b.op("Mul", dy, z, shape=shape_of(dy)), x),
        lambda: b.unbroadcast(b.op("Mul", dy, x, shape=shape_of(dy)), z),
    )


@vjp("Div")
def div(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """Y = a/b: da = dy/b, db = −dy·y/b."""
    x, z = operand(node, 0), operand(node, 1)
    y = node.outputs[0]

    def by_denominator() -> ir.Value:
        return b.unbroadcast(b.op("Neg", b.op("Div", b.op("Mul", dy, y), z)), z)

    return _gradients(b, node, lambda: b.unbroadcast(b.op("Div", dy, z), x), by_denominator)
