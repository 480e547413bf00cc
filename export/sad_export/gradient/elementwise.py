"""Arithmetic, element by element, with broadcasting undone in one place (:meth:`Emitter.unbroadcast`)."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from .activation import is_sigmoid_of, slope_of_swish
from .emitter import Emitter
from .rules import Gradients, attribute, constant_operand, no_gradient, only_first, operand, vjp
from .values import Unsupported, shape_of

no_gradient("Shape", "Size", "ArgMax", "ArgMin", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")
no_gradient("And", "Or", "Xor", "Not", "Sign", "Floor", "Ceil", "Round", "IsNaN", "IsInf", "ConstantOfShape")
no_gradient("NonZero", "EyeLike")


def _gradients(b: Emitter, node: ir.Node, *parts: Callable[[], ir.Value]) -> Gradients:
    """One gradient per input, written only where it is wanted, with broadcasting undone."""
    return tuple(
        b.unbroadcast(part(), value) if value is not None and b.wants(value) else None
        for value, part in zip(node.inputs, parts, strict=True)
    )


# Several operands


@vjp("Add")
def add(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """da = dy, db = dy."""
    return _gradients(b, node, lambda: dy, lambda: dy)


@vjp("Sum")
def sum_(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """Dy for every term."""
    return _gradients(b, node, *[lambda: dy] * len(node.inputs))


@vjp("Mean")
def mean(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dy/n for each of n terms."""
    share = b.scale(dy, 1.0 / len(node.inputs))
    return _gradients(b, node, *[lambda: share] * len(node.inputs))


@vjp("Sub")
def sub(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """da = dy, db = −dy."""
    return _gradients(b, node, lambda: dy, lambda: b.op("Neg", dy))


@vjp("Mul")
def mul(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """da = dy·b, db = dy·a; as one function where it is x·σ(x)."""
    x, z = operand(node, 0), operand(node, 1)
    if is_sigmoid_of(z, x):
        return b.op("Mul", dy, slope_of_swish(b, x, z, node.outputs[0])), None
    if is_sigmoid_of(x, z):
        return None, b.op("Mul", dy, slope_of_swish(b, z, x, node.outputs[0]))
    return _gradients(b, node, lambda: b.times(dy, z), lambda: b.times(dy, x))


@vjp("Div")
def div(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """Y = a/b: da = dy/b, db = −dy·y/b."""
    z, y = operand(node, 1), node.outputs[0]
    return _gradients(
        b,
        node,
        lambda: b.op("Div", dy, z),
        lambda: b.op("Neg", b.op("Div", b.op("Mul", dy, y), z)),
    )


@vjp("Pow")
def pow_(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = aᵇ: da = dy·b·a^(b−1), 0 where b is 0; db = dy·y·ln a, 0 where a is 0."""
    base, exponent = operand(node, 0), operand(node, 1)

    def by_base() -> ir.Value:
        power = exponent if exponent.dtype == base.dtype else b.cast(exponent, base)
        known = constant_operand(node, 1, "exponents") if exponent.const_value is not None else None
        if known is not None and (known == 2).all():
            return b.op("Mul", dy, b.scale(base, 2.0))
        if known is None or (known == 0).any():
            zero = b.op("Equal", power, b.like(power, 0.0))
            # a^(b−1) at b = 0 may be 1/0, and 0·∞ is no number: raise to 0 instead.
            lowered = b.op("Where", zero, b.like(power, 0.0), b.op("Sub", power, b.like(power, 1.0)))
        else:
            lowered = b.op("Sub", power, b.like(power, 1.0))
        return b.op("Mul", b.op("Mul", dy, power), b.op("Pow", base, lowered))

    def by_exponent() -> ir.Value:
        positive = b.op("Greater", base, b.like(base, 0.0))
        logarithm = b.op("Log", b.op("Where", positive, base, b.like(base, 1.0)))
        return b.op("Mul", dy, b.op("Mul", node.outputs[0], logarithm))

    return _gradients(b, node, by_base, by_exponent)


@vjp("Max", "Min")
def max_or_min(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """The operand that was chosen takes dy; tied ones share it evenly, as PyTorch's maximum."""
    y = node.outputs[0]
    if len(node.inputs) == 1:
        return (dy,)
    chosen = [b.cast(b.op("Equal", value, y), dy) for value in node.inputs if value is not None]
    share = b.op("Div", dy, b.add(chosen))
    return _gradients(b, node, *[lambda mask=mask: b.op("Mul", share, mask) for mask in chosen])


@vjp("Mod", inputs=[0])
def mod(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = a − n·b with a whole n: da = dy."""
    return only_first(node, b.unbroadcast(dy, operand(node, 0)))


@vjp("Where", inputs=[1, 2])
def where(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """da = dy where the condition holds, db = dy where it does not."""
    condition, zero = operand(node, 0), b.like(dy, 0.0)
    return _gradients(
        b,
        node,
        lambda: dy,
        lambda: b.op("Where", condition, dy, zero),
        lambda: b.op("Where", condition, zero, dy),
    )


# One operand


@vjp("Identity", quantized=True)
def identity(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy."""
    return (dy,)


@vjp("Dropout", inputs=[0])
def dropout(b: Emitter, node: ir.Node, dy: ir.Value, *_: ir.Value | None) -> Gradients:
    """Inference: dx = dy."""
    training = constant_operand(node, 2, "training mode")
    if training is not None and training.any():
        raise Unsupported("it is in training mode; export the model in eval mode")
    return only_first(node, dy)


@vjp("Neg")
def neg(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = −dy."""
    return (b.op("Neg", dy),)


@vjp("Abs")
def abs_(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · sign(x); 0 at the kink."""
    return (b.op("Mul", dy, b.op("Sign", operand(node, 0))),)


@vjp("Exp")
def exp(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · y."""
    return (b.op("Mul", dy, node.outputs[0]),)


@vjp("Log")
def log(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy / x."""
    return (b.op("Div", dy, operand(node, 0)),)


@vjp("Sqrt")
def sqrt(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy / 2y."""
    return (b.op("Div", b.scale(dy, 0.5), node.outputs[0]),)


@vjp("Reciprocal")
def reciprocal(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = 1/x, so dx = −dy · y²."""
    y = node.outputs[0]
    return (b.op("Neg", b.op("Mul", b.op("Mul", dy, y), y)),)


@vjp("Sin")
def sin(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · cos x."""
    return (b.op("Mul", dy, b.op("Cos", operand(node, 0))),)


@vjp("Cos")
def cos(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = −dy · sin x."""
    return (b.op("Neg", b.op("Mul", dy, b.op("Sin", operand(node, 0)))),)


@vjp("Tan")
def tan(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · (1 + y²)."""
    y = node.outputs[0]
    return (b.op("Mul", dy, b.op("Add", b.op("Mul", y, y), b.like(y, 1.0))),)


@vjp("Asin", "Acos")
def asin_or_acos(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = ±dy / √(1 − x²)."""
    x = operand(node, 0)
    dx = b.op("Div", dy, b.op("Sqrt", b.op("Sub", b.like(x, 1.0), b.op("Mul", x, x))))
    return (dx if node.op_type == "Asin" else b.op("Neg", dx),)


@vjp("Atan")
def atan(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy / (1 + x²)."""
    x = operand(node, 0)
    return (b.op("Div", dy, b.op("Add", b.op("Mul", x, x), b.like(x, 1.0))),)


@vjp("Sinh")
def sinh(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · cosh x."""
    return (b.op("Mul", dy, b.op("Cosh", operand(node, 0))),)


@vjp("Cosh")
def cosh(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · sinh x."""
    return (b.op("Mul", dy, b.op("Sinh", operand(node, 0))),)


@vjp("Asinh", "Acosh")
def asinh_or_acosh(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy / √(x² ± 1)."""
    x = operand(node, 0)
    one = b.like(x, 1.0 if node.op_type == "Asinh" else -1.0)
    return (b.op("Div", dy, b.op("Sqrt", b.op("Add", b.op("Mul", x, x), one))),)


@vjp("Atanh")
def atanh(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy / (1 − x²)."""
    x = operand(node, 0)
    return (b.op("Div", dy, b.op("Sub", b.like(x, 1.0), b.op("Mul", x, x))),)


# Along one axis


@vjp("CumSum", inputs=[0])
def cumulative_sum(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """x_i adds to every sum from its own on: dx is the cumulative sum of dy, from the other end."""
    backwards = 1 - attribute(node, "reverse", 0)
    exclusive = attribute(node, "exclusive", 0)
    dx = b.op("CumSum", dy, operand(node, 1), exclusive=exclusive, reverse=backwards, shape=shape_of(dy))
    return only_first(node, dx)


@vjp("Trilu", inputs=[0])
def triangle(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """The same triangle of dy."""
    return only_first(node, b.op("Trilu", dy, *node.inputs[1:], upper=attribute(node, "upper", 1)))
