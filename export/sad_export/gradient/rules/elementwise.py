"""Arithmetic, element by element; what broadcasting repeated is summed by the walk."""

from __future__ import annotations

from ...graph.expression import Expr
from ...graph.functions import equal, log, sign, sqrt, where
from ...graph.values import Unsupported
from ..registry import Gradient, Gradients, no_gradient, vjp
from ..words import Words

no_gradient("Shape", "Size", "ArgMax", "ArgMin", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")
no_gradient("And", "Or", "Xor", "Not", "Sign", "Floor", "Ceil", "Round", "IsNaN", "IsInf", "ConstantOfShape")
no_gradient("NonZero", "EyeLike")


# Several operands


@vjp("Add")
def add(a: Expr, b: Expr, *, dy: Expr) -> Gradients:
    """da = dy, db = dy."""
    return dy, dy


@vjp("Sum")
def sum_(*terms: Expr, dy: Expr) -> Gradients:
    """dy for every term."""
    return (dy,) * len(terms)


@vjp("Mean")
def mean(*terms: Expr, dy: Expr) -> Gradients:
    """dy/n for each of n terms."""
    return (dy * (1.0 / len(terms)),) * len(terms)


@vjp("Sub")
def sub(a: Expr, b: Expr, *, dy: Expr) -> Gradients:
    """da = dy, db = −dy."""
    return dy, lambda: -dy


@vjp("Mul")
def mul(a: Expr, b: Expr, *, dy: Expr, g: Words) -> Gradients:
    """da = dy·b, db = dy·a."""
    return lambda: g.times(dy, b), lambda: g.times(dy, a)


@vjp("Div")
def div(a: Expr, b: Expr, *, y: Expr, dy: Expr) -> Gradients:
    """y = a/b: da = dy/b, db = −dy·y/b."""
    return lambda: dy / b, lambda: -(dy * y / b)


@vjp("Pow")
def pow_(a: Expr, b: Expr, *, y: Expr, dy: Expr) -> Gradients:
    """y = aᵇ: da = dy·b·a^(b−1), 0 where b is 0; db = dy·y·ln a, 0 where a is 0."""

    def by_base() -> Expr:
        power = b.cast(a)
        known = b.numbers
        if known is not None and (known == 2).all():
            return dy * (a * 2.0)
        if known is None or (known == 0).any():
            # a^(b−1) at b = 0 may be 1/0, and 0·∞ is no number: raise to 0 instead.
            lowered = where(equal(power, 0.0), power.like(0.0), power - 1.0)
        else:
            lowered = power - 1.0
        return dy * power * a**lowered

    def by_exponent() -> Expr:
        return dy * (y * log(where(a > 0.0, a, a.like(1.0))))

    return by_base, by_exponent


@vjp("Max", "Min")
def max_or_min(*operands: Expr, y: Expr, dy: Expr, g: Words) -> Gradients:
    """The operand that was chosen takes dy; tied ones share it evenly, as PyTorch's maximum."""
    if len(operands) == 1:
        return dy
    chosen = [equal(value, y).cast(dy) for value in operands]
    share = dy / g.sum_terms(chosen)
    return tuple(_product(share, mask) for mask in chosen)


def _product(share: Expr, mask: Expr) -> Gradient:
    return lambda: share * mask


@vjp("Mod", inputs=[0])
def mod(a: Expr, b: Expr, *, dy: Expr) -> Gradient:
    """y = a − n·b with a whole n: da = dy."""
    return dy


@vjp("Where", inputs=[1, 2])
def where_(condition: Expr, a: Expr, b: Expr, *, dy: Expr) -> Gradients:
    """da = dy where the condition holds, db = dy where it does not."""
    zero = dy.like(0.0)
    return None, lambda: where(condition, dy, zero), lambda: where(condition, zero, dy)


# One operand


@vjp("Identity", quantized=True)
def identity(x: Expr, *, dy: Expr) -> Gradient:
    """dx = dy."""
    return dy


@vjp("Dropout", inputs=[0])
def dropout(x: Expr, ratio: Expr | None = None, training: Expr | None = None, *, dy: Expr) -> Gradient:
    """Inference: dx = dy."""
    if training is not None and training.known("training mode").any():
        raise Unsupported("it is in training mode; export the model in eval mode")
    return dy


@vjp("Neg")
def neg(x: Expr, *, dy: Expr) -> Gradient:
    """dx = −dy."""
    return -dy


@vjp("Abs")
def abs_(x: Expr, *, dy: Expr) -> Gradient:
    """dx = dy · sign(x); 0 at the kink."""
    return dy * sign(x)


@vjp("Exp")
def exp(x: Expr, *, y: Expr, dy: Expr) -> Gradient:
    """dx = dy · y."""
    return dy * y


@vjp("Log")
def log_(x: Expr, *, dy: Expr) -> Gradient:
    """dx = dy / x."""
    return dy / x


@vjp("Sqrt")
def sqrt_(x: Expr, *, y: Expr, dy: Expr) -> Gradient:
    """dx = dy / 2y."""
    return dy * 0.5 / y


@vjp("Reciprocal")
def reciprocal(x: Expr, *, y: Expr, dy: Expr) -> Gradient:
    """y = 1/x, so dx = −dy · y²."""
    return -(dy * y * y)


@vjp("Sin")
def sin(x: Expr, *, dy: Expr) -> Gradient:
    """dx = dy · cos x."""
    return dy * x.op("Cos")


@vjp("Cos")
def cos(x: Expr, *, dy: Expr) -> Gradient:
    """dx = −dy · sin x."""
    return -(dy * x.op("Sin"))


@vjp("Tan")
def tan(x: Expr, *, y: Expr, dy: Expr) -> Gradient:
    """dx = dy · (1 + y²)."""
    return dy * (y * y + 1.0)


@vjp("Asin")
def asin(x: Expr, *, dy: Expr) -> Gradient:
    """dx = dy / √(1 − x²)."""
    return dy / sqrt(1.0 - x * x)


@vjp("Acos")
def acos(x: Expr, *, dy: Expr) -> Gradient:
    """dx = −dy / √(1 − x²)."""
    return -(dy / sqrt(1.0 - x * x))


@vjp("Atan")
def atan(x: Expr, *, dy: Expr) -> Gradient:
    """dx = dy / (1 + x²)."""
    return dy / (x * x + 1.0)


@vjp("Sinh")
def sinh(x: Expr, *, dy: Expr) -> Gradient:
    """dx = dy · cosh x."""
    return dy * x.op("Cosh")


@vjp("Cosh")
def cosh(x: Expr, *, dy: Expr) -> Gradient:
    """dx = dy · sinh x."""
    return dy * x.op("Sinh")


@vjp("Asinh")
def asinh(x: Expr, *, dy: Expr) -> Gradient:
    """dx = dy / √(x² + 1)."""
    return dy / sqrt(x * x + 1.0)


@vjp("Acosh")
def acosh(x: Expr, *, dy: Expr) -> Gradient:
    """dx = dy / √(x² − 1)."""
    return dy / sqrt(x * x + -1.0)


@vjp("Atanh")
def atanh(x: Expr, *, dy: Expr) -> Gradient:
    """dx = dy / (1 − x²)."""
    return dy / (1.0 - x * x)


# Along one axis


@vjp("CumSum", inputs=[0])
def cumulative_sum(x: Expr, axis: Expr, *, dy: Expr, exclusive: int = 0, reverse: int = 0) -> Gradient:
    """x_i adds to every sum from its own on: dx is the cumulative sum of dy, from the other end."""
    return dy.op("CumSum", axis, exclusive=exclusive, reverse=1 - reverse, shape=dy.shape)


@vjp("Trilu", inputs=[0])
def triangle(x: Expr, k: Expr | None = None, *, dy: Expr, upper: int = 1) -> Gradient:
    """The same triangle of dy."""
    return dy.op("Trilu", k, upper=upper)
