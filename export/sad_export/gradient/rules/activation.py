"""Activations. Each derivative is written in the output y where it can be, so that the fused
Conv + activation of the forward graph stays fused: nothing else then reads what lies between them.

At kinks they take the side that PyTorch takes.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from ...graph.expression import Expr
from ...graph.functions import abs_, exp, maximum, minimum, sigmoid, tanh, where
from ..registry import Gradient, Gradients, no_gradient, pattern, vjp
from ..words import Words

no_gradient("Hardmax")


@vjp("Relu")
def relu(x: Expr, *, y: Expr, dy: Expr, g: Words) -> Gradient:
    """dx = dy · 1[y > 0]; 0 at the kink."""
    return g.where_positive(y, dy)


@vjp("LeakyRelu")
def leaky_relu(x: Expr, *, y: Expr, dy: Expr, alpha: float = 0.01) -> Gradient:
    """dx = dy · (x > 0 ? 1 : α)."""
    return where(_is_positive(x, y, alpha), dy, dy * alpha)


@vjp("PRelu")
def prelu(x: Expr, slope: Expr, *, dy: Expr) -> Gradients:
    """dx = dy · (x > 0 ? 1 : slope), dslope = dy · min(x, 0)."""
    return lambda: where(x > 0.0, dy, dy * slope), lambda: dy * minimum(x, 0.0)


@vjp("Elu")
def elu(x: Expr, *, y: Expr, dy: Expr, alpha: float = 1.0) -> Gradient:
    """y = x > 0 ? x : α·(eˣ − 1), so dx = dy · (x > 0 ? 1 : y + α)."""
    return where(_is_positive(x, y, alpha), dy, dy * (y + alpha))


@vjp("Selu")
def selu(
    x: Expr,
    *,
    y: Expr,
    dy: Expr,
    alpha: float = 1.67326319217681884765625,
    gamma: float = 1.05070102214813232421875,
) -> Gradient:
    """y = γ·(x > 0 ? x : α·(eˣ − 1)), so dx = dy · (x > 0 ? γ : y + γα)."""
    return where(_is_positive(x, y, min(alpha, gamma)), dy * gamma, dy * (y + gamma * alpha))


@vjp("Celu")
def celu(x: Expr, *, y: Expr, dy: Expr, alpha: float = 1.0) -> Gradient:
    """y = x > 0 ? x : α·(e^(x/α) − 1), so dx = dy · (y > 0 ? 1 : y/α + 1); y has the sign of x for any α."""
    return where(y > 0.0, dy, dy * (y * (1.0 / alpha) + 1.0))


def _is_positive(x: Expr, y: Expr, slope: float) -> Expr:
    """1[x > 0], from y if the activation keeps the sign: if its slope below zero is positive."""
    return (y if slope > 0 else x) > 0.0


@vjp("ThresholdedRelu")
def thresholded_relu(x: Expr, *, y: Expr, dy: Expr, g: Words, alpha: float = 1.0) -> Gradient:
    """y = x > α ? x : 0, so dx = dy · 1[x > α]; from y if α ≥ 0."""
    return g.where_positive(y, dy) if alpha >= 0 else dy * (x > alpha)


@vjp("Shrink")
def shrink(x: Expr, *, dy: Expr, lambd: float = 0.5) -> Gradient:
    """dx = dy · 1[|x| > λ]."""
    return dy * (abs_(x) > lambd)


@vjp("Clip")
def clip(
    x: Expr, low: Expr | None = None, high: Expr | None = None, *, y: Expr, dy: Expr, g: Words
) -> Gradients:
    """dx = dy · 1[low < y < high]; 0 at both kinks, as PyTorch's ReLU6. A bound takes what x loses."""
    return (
        lambda: g.where_within(y, low, high, dy),
        None if low is None else lambda: dy * (x < low),
        None if high is None else lambda: dy * (x > high),
    )


@vjp("Sigmoid")
def sigmoid_(x: Expr, *, y: Expr, dy: Expr) -> Gradient:
    """dx = dy · y·(1 − y)."""
    return dy * (y * (1.0 - y))


@vjp("HardSigmoid")
def hard_sigmoid(x: Expr, *, y: Expr, dy: Expr, alpha: float = 0.2) -> Gradient:
    """y = min(max(αx + β, 0), 1), so dx = α·dy · 1[0 < y < 1]."""
    return dy * ((y > 0.0) & (y < 1.0)) * alpha


@vjp("HardSwish")
def hard_swish(x: Expr, *, dy: Expr, g: Words) -> Gradient:
    """y = x·h with h = min(max(x/6 + ½, 0), 1), so dx = dy · (h + x/6 · 1[0 < h < 1])."""
    return g.hard_swish_gradient(x, dy)


@vjp("Softplus")
def softplus(x: Expr, *, dy: Expr) -> Gradient:
    """y = ln(1 + eˣ), so dx = dy · σ(x)."""
    return dy * sigmoid(x)


@vjp("Softsign")
def softsign(x: Expr, *, dy: Expr) -> Gradient:
    """y = x / (1 + |x|), so dx = dy / (1 + |x|)²."""
    denominator = abs_(x) + 1.0
    return dy / denominator / denominator


@vjp("Tanh")
def tanh_(x: Expr, *, y: Expr, dy: Expr) -> Gradient:
    """dx = dy · (1 − y²)."""
    return dy * (1.0 - y * y)


@vjp("Erf")
def erf(x: Expr, *, dy: Expr) -> Gradient:
    """dx = dy · 2/√π · e^(−x²)."""
    return dy * (exp(-(x * x)) * (2.0 / math.sqrt(math.pi)))


@vjp("Gelu")
def gelu(x: Expr, *, dy: Expr, approximate: str = "none") -> Gradient:
    """y = x·Φ(x), so dx = dy · (Φ(x) + x·φ(x)), Φ the normal distribution.

    Exactly, or by its tanh approximation::

    Φ = ½·(1 + erf(x/√2)),  φ = e^(−x²/2)/√(2π)
    Φ ≈ ½·(1 + t),  t = tanh(u),  u = √(2/π)·(x + 0.044715·x³),  φ = ½·(1 − t²)·u′
    """
    root = math.sqrt(2.0 / math.pi)
    if approximate == "tanh":
        # Beyond ±10 the derivative is 0 or 1 to the last bit, and x³ could overflow in half precision.
        x = maximum(minimum(x, 10.0), -10.0)
        square = x * x
        curve = tanh(x * (square * (0.044715 * root) + root))
        slope = square * (3 * 0.044715 * root) + root
        density = (1.0 - curve * curve) * (slope * 0.5)
    else:
        z = x * math.sqrt(0.5)
        curve = z.op("Erf")
        density = exp(-(z * z)) * (root / 2)
    return dy * ((curve + 1.0) * 0.5 + x * density)


@vjp("Mish")
def mish(x: Expr, *, dy: Expr) -> Gradient:
    """y = x·t with t = tanh(ln(1 + eˣ)), so dx = dy · (t + x·σ(x)·(1 − t²))."""
    t = tanh(x.op("Softplus"))
    return dy * (t + x * (sigmoid(x) * (1.0 - t * t)))


@vjp("Swish")
def swish(x: Expr, *, y: Expr, dy: Expr, g: Words, alpha: float = 1.0) -> Gradient:
    """y = x·σ(αx), so dx = dy · σ·(1 + α·(x − y))."""
    return g.swish_gradient(x, sigmoid(x * alpha), y, dy, alpha)


def _swish_by_hand(node: ir.Node) -> list[ir.Value] | None:
    """x and σ(x), where a Mul multiplies them: before opset 24, exporters write Swish so."""
    for x, s in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        producer = s.producer() if s is not None else None
        if x is None or s is None or producer is None or producer.op_type != "Sigmoid":
            continue
        if producer.inputs[0] is x:
            return [x, s]
    return None


@pattern("Mul", _swish_by_hand)
def swish_by_hand(x: Expr, s: Expr, *, y: Expr, dy: Expr, g: Words) -> Gradient:
    """y = x·σ(x) as one function."""
    return g.swish_gradient(x, s, y, dy)


@vjp("Softmax")
def softmax(x: Expr, *, y: Expr, dy: Expr, axis: int = -1) -> Gradient:
    """dx = y · (dy − Σ dy·y), summed along the axis."""
    return y * (dy - (dy * y).sum([axis]))


@vjp("LogSoftmax")
def log_softmax(x: Expr, *, y: Expr, dy: Expr, axis: int = -1) -> Gradient:
    """dx = dy − eʸ · Σ dy, summed along the axis."""
    return dy - exp(y) * dy.sum([axis])
