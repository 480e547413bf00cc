"""Activations. Each derivative is written in the output y where it can be, so that the fused
Conv + activation of the forward graph stays fused: nothing else then reads what lies between them.

At kinks they take the side that PyTorch takes.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from . import blocked
from .emitter import Emitter
from .pooling import masks_its_rectifier
from .rules import Gradients, attribute, no_gradient, only_first, operand, sole_reader, vjp
from .values import constant_array

no_gradient("Hardmax")


@vjp("Relu")
def relu(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · 1[y > 0]; 0 at the kink. A MaxPool that alone reads y has masked dy already."""
    y = node.outputs[0]
    return (dy if masks_its_rectifier(sole_reader(y)) else b.where_positive(y, dy),)


@vjp("LeakyRelu")
def leaky_relu(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · (x > 0 ? 1 : α)."""
    alpha = attribute(node, "alpha", 0.01)
    return (b.op("Where", _x_is_positive(b, node, alpha), dy, b.scale(dy, alpha)),)


@vjp("PRelu")
def prelu(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · (x > 0 ? 1 : slope), dslope = dy · min(x, 0)."""
    x, slope = operand(node, 0), operand(node, 1)
    positive = b.op("Greater", x, b.like(x, 0.0))
    dx = b.op("Where", positive, dy, b.op("Mul", dy, slope)) if b.wants(x) else None
    if not b.wants(slope):
        return dx, None
    return dx, b.unbroadcast(b.op("Mul", dy, b.op("Min", x, b.like(x, 0.0))), slope)


@vjp("Elu")
def elu(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x > 0 ? x : α·(eˣ − 1), so dx = dy · (x > 0 ? 1 : y + α)."""
    alpha, y = attribute(node, "alpha", 1.0), node.outputs[0]
    slope = b.op("Add", y, b.like(y, alpha))
    return (b.op("Where", _x_is_positive(b, node, alpha), dy, b.op("Mul", dy, slope)),)


@vjp("Selu")
def selu(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = γ·(x > 0 ? x : α·(eˣ − 1)), so dx = dy · (x > 0 ? γ : y + γα)."""
    y = node.outputs[0]
    alpha = attribute(node, "alpha", 1.67326319217681884765625)
    gamma = attribute(node, "gamma", 1.05070102214813232421875)
    slope = b.op("Add", y, b.like(y, gamma * alpha))
    return (
        b.op("Where", _x_is_positive(b, node, min(alpha, gamma)), b.scale(dy, gamma), b.op("Mul", dy, slope)),
    )


@vjp("Celu")
def celu(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x > 0 ? x : α·(e^(x/α) − 1), so dx = dy · (y > 0 ? 1 : y/α + 1); y has the sign of x for any α."""
    y = node.outputs[0]
    slope = b.op("Add", b.scale(y, 1.0 / attribute(node, "alpha", 1.0)), b.like(y, 1.0))
    return (b.op("Where", b.op("Greater", y, b.like(y, 0.0)), dy, b.op("Mul", dy, slope)),)


def _x_is_positive(b: Emitter, node: ir.Node, slope: float) -> ir.Value:
    """1[x > 0], from y if the activation keeps the sign: if its slope below zero is positive."""
    value = node.outputs[0] if slope > 0 else operand(node, 0)
    return b.op("Greater", value, b.like(value, 0.0))


@vjp("ThresholdedRelu")
def thresholded_relu(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x > α ? x : 0, so dx = dy · 1[x > α]; from y if α ≥ 0."""
    alpha = attribute(node, "alpha", 1.0)
    if alpha >= 0:
        return (b.where_positive(node.outputs[0], dy),)
    x = operand(node, 0)
    return (b.masked(dy, b.op("Greater", x, b.like(x, alpha))),)


@vjp("Shrink")
def shrink(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · 1[|x| > λ]."""
    x = operand(node, 0)
    return (b.masked(dy, b.op("Greater", b.op("Abs", x), b.like(x, attribute(node, "lambd", 0.5)))),)


@vjp("Clip")
def clip(b: Emitter, node: ir.Node, dy: ir.Value, *_: ir.Value | None) -> Gradients:
    """dx = dy · 1[low < y < high]; 0 at both kinks, as PyTorch's ReLU6. A bound takes what x loses."""
    x, y = operand(node, 0), node.outputs[0]
    if b.is_blocked(y) and not any(b.wants(bound) for bound in node.inputs[1:]):
        return only_first(node, _clip_blocked(b, node, dy))
    inside: list[ir.Value] = []
    of_bounds: list[ir.Value | None] = []
    for bound, within, beyond in zip(node.inputs[1:], ("Greater", "Less"), ("Less", "Greater"), strict=False):
        of_bounds.append(None)
        if bound is not None:
            inside.append(b.op(within, y, bound))
            if b.wants(bound):
                of_bounds[-1] = b.unbroadcast(b.masked(dy, b.op(beyond, x, bound)), bound)
    if not inside:
        return only_first(node, dy)
    return b.masked(dy, inside[0] if len(inside) == 1 else b.op("And", *inside)), *of_bounds


def _clip_blocked(b: Emitter, node: ir.Node, dy: ir.Value) -> ir.Value:
    """The same in onnxruntime's blocked layout (:mod:`.layout`); the bounds are constants."""
    y = node.outputs[0]
    low, high = (_number(bound) for bound in (*node.inputs[1:], None, None)[:2])
    dx = blocked.enter(b, dy)
    if low == 0 and high is not None and high > 0:
        return b.op("Mul", dx, blocked.inside(b, y, high))
    for bound, sign in ((low, 1.0), (high, -1.0)):
        if bound is not None:
            dx = b.op("Mul", dx, blocked.step(b, y, sign, bound))
    return dx


def _number(bound: ir.Value | None) -> float | None:
    array = constant_array(bound)
    return None if array is None else float(array)


@vjp("Sigmoid")
def sigmoid(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · y·(1 − y)."""
    y = node.outputs[0]
    return (b.op("Mul", dy, b.op("Mul", y, b.op("Sub", b.like(y, 1.0), y))),)


@vjp("HardSigmoid")
def hard_sigmoid(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = min(max(αx + β, 0), 1), so dx = α·dy · 1[0 < y < 1]."""
    y = node.outputs[0]
    inside = b.op("And", b.op("Greater", y, b.like(y, 0.0)), b.op("Less", y, b.like(y, 1.0)))
    return (b.scale(b.masked(dy, inside), attribute(node, "alpha", 0.2)),)


@vjp("HardSwish")
def hard_swish(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x·h with h = min(max(x/6 + ½, 0), 1), so dx = dy · (h + x/6 · 1[0 < h < 1])."""
    x = operand(node, 0)
    if b.is_blocked(x):
        return (b.op("Mul", blocked.enter(b, dy), _slope_of_blocked_hard_swish(b, x)),)
    h = b.op("HardSigmoid", x, alpha=1.0 / 6.0, beta=0.5)
    inside = b.op("Less", b.op("Abs", x), b.like(x, 3.0))
    return (b.op("Mul", dy, b.op("Add", h, b.masked(b.scale(x, 1.0 / 6.0), inside))),)


def _slope_of_blocked_hard_swish(b: Emitter, x: ir.Value) -> ir.Value:
    """The same in onnxruntime's blocked layout: 2h − ½ where 0 < h < 1, and h itself at both ends.

    As 2h − ½ + ½·1[h = 0] − ½·1[h = 1], each a depthwise Conv, added as it goes.
    """
    h = blocked.affine(b, x, 1.0 / 6.0, 0.5, clip=(0.0, 1.0))
    at_zero = b.op("Relu", blocked.affine(b, h, -(2.0**90), 1.0))
    # 2²⁴ is the first power that tells 1 from the float before it; the sum is exact.
    at_one = b.op("Relu", blocked.affine(b, h, 2.0**24, 1.0 - 2.0**24))
    slope = b.op("Add", blocked.affine(b, at_zero, 0.5, -0.5), blocked.affine(b, h, 2.0, 0.0))
    return b.op("Add", blocked.affine(b, at_one, -0.5, 0.0), slope)


@vjp("Softplus")
def softplus(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = ln(1 + eˣ), so dx = dy · σ(x)."""
    return (b.op("Mul", dy, b.op("Sigmoid", operand(node, 0))),)


@vjp("Softsign")
def softsign(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x / (1 + |x|), so dx = dy / (1 + |x|)²."""
    x = operand(node, 0)
    denominator = b.op("Add", b.op("Abs", x), b.like(x, 1.0))
    return (b.op("Div", b.op("Div", dy, denominator), denominator),)


@vjp("Tanh")
def tanh(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · (1 − y²)."""
    y = node.outputs[0]
    return (b.op("Mul", dy, b.op("Sub", b.like(y, 1.0), b.op("Mul", y, y))),)


@vjp("Erf")
def erf(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · 2/√π · e^(−x²)."""
    x = operand(node, 0)
    return (b.op("Mul", dy, b.scale(_bell(b, x), 2.0 / math.sqrt(math.pi))),)


@vjp("Gelu")
def gelu(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x·Φ(x), so dx = dy · (Φ(x) + x·φ(x)), Φ the normal distribution.

    Exactly, or by its tanh approximation::

    Φ = ½·(1 + erf(x/√2)),  φ = e^(−x²/2)/√(2π)
    Φ ≈ ½·(1 + t),  t = tanh(u),  u = √(2/π)·(x + 0.044715·x³),  φ = ½·(1 − t²)·u′
    """
    x = operand(node, 0)
    root = math.sqrt(2.0 / math.pi)
    if attribute(node, "approximate", "none") == "tanh":
        # Beyond ±10 the derivative is 0 or 1 to the last bit, and x³ could overflow in half precision.
        x = b.op("Max", b.op("Min", x, b.like(x, 10.0)), b.like(x, -10.0))
        square = b.op("Mul", x, x)
        u = b.op("Mul", x, b.op("Add", b.scale(square, 0.044715 * root), b.like(x, root)))
        slope = b.op("Add", b.scale(square, 3 * 0.044715 * root), b.like(x, root))
        curve = b.op("Tanh", u)
        density = b.op("Mul", b.op("Sub", b.like(x, 1.0), b.op("Mul", curve, curve)), b.scale(slope, 0.5))
    else:
        curve = b.op("Erf", b.scale(x, math.sqrt(0.5)))
        density = b.scale(_bell(b, b.scale(x, math.sqrt(0.5))), root / 2)
    distribution = b.scale(b.op("Add", curve, b.like(x, 1.0)), 0.5)
    return (b.op("Mul", dy, b.op("Add", distribution, b.op("Mul", x, density))),)


def _bell(b: Emitter, x: ir.Value) -> ir.Value:
    """e^(−x²)."""
    return b.op("Exp", b.op("Neg", b.op("Mul", x, x)))


@vjp("Mish")
def mish(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x·t with t = tanh(ln(1 + eˣ)), so dx = dy · (t + x·σ(x)·(1 − t²))."""
    x = operand(node, 0)
    t = b.op("Tanh", b.op("Softplus", x))
    slope = b.op("Mul", b.op("Sigmoid", x), b.op("Sub", b.like(x, 1.0), b.op("Mul", t, t)))
    return (b.op("Mul", dy, b.op("Add", t, b.op("Mul", x, slope))),)


@vjp("Swish")
def swish(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x·σ(αx), so dx = dy · σ·(1 + α·(x − y))."""
    x = operand(node, 0)
    alpha = attribute(node, "alpha", 1.0)
    s = b.op("Sigmoid", b.scale(x, alpha))
    return (b.op("Mul", dy, slope_of_swish(b, x, s, node.outputs[0], alpha)),)


def is_sigmoid_of(s: ir.Value, x: ir.Value) -> bool:
    """Whether ``s`` is σ(x): before opset 24, exporters write x·σ(x) for Swish."""
    producer = s.producer()
    return producer is not None and producer.op_type == "Sigmoid" and producer.inputs[0] is x


def slope_of_swish(b: Emitter, x: ir.Value, s: ir.Value, y: ir.Value, alpha: float = 1.0) -> ir.Value:
    """The derivative of y = x·s with s = σ(αx): s + αx·s·(1 − s) = s·(1 + α·(x − y)).

    Half the operators of the product rule. For a large x, where x − y cancels, y equals x exactly.
    """
    if alpha == 1.0 and b.is_blocked(y):
        rest = b.op("Add", blocked.affine(b, y, -1.0, 1.0), x)
    else:
        rest = b.op("Add", b.scale(b.op("Sub", x, y), alpha), b.like(x, 1.0))
    return b.op("Mul", s, rest)


@vjp("Softmax")
def softmax(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = y · (dy − Σ dy·y), summed along the axis."""
    y = node.outputs[0]
    total = b.reduce("ReduceSum", b.op("Mul", dy, y), [attribute(node, "axis", -1)])
    return (b.op("Mul", y, b.op("Sub", dy, total)),)


@vjp("LogSoftmax")
def log_softmax(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy − eʸ · Σ dy, summed along the axis."""
    total = b.reduce("ReduceSum", dy, [attribute(node, "axis", -1)])
    return (b.op("Sub", dy, b.op("Mul", b.op("Exp", node.outputs[0]), total)),)
