"""Normalisations over some axes.

With x̂ = (x − μ)/σ, y = γ·x̂ + β and g = dy·γ::

    dx = (g − mean(g) − x̂·mean(g·x̂)) / σ

μ and σ are computed again from x: TensorRT refuses a LayerNormalization that also gives them out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .emitter import Emitter
from .reduction import not_zero
from .rules import Gradients, attribute, constant_operand, only_first, operand, vjp
from .values import Dim, Unsupported, shape_of, static


@vjp("BatchNormalization", inputs=[0])
def batch_normalization(b: Emitter, node: ir.Node, dy: ir.Value, *_: ir.Value | None) -> Gradients:
    """Y = γ·(x − μ)/√(σ² + ε) + β with stored statistics: dx = dy · γ/√(σ² + ε), computed in float64."""
    if attribute(node, "training_mode", 0):
        raise Unsupported("it is in training mode; export the model in eval mode")
    gamma, variance = constant_operand(node, 1, "scales"), constant_operand(node, 4, "variances")
    assert gamma is not None
    assert variance is not None
    epsilon = attribute(node, "epsilon", 1e-5)
    factor = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    return only_first(
        node, b.op("Mul", dy, b.like(dy, factor.reshape(1, -1, *[1] * (len(shape_of(dy)) - 2))))
    )


@vjp("InstanceNormalization", inputs=[0])
def instance_normalization(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """x̂ over the spatial axes; γ of shape (C)."""
    x = operand(node, 0)
    rank = len(shape_of(x))
    g = b.op("Mul", dy, b.reshape(operand(node, 1), [*shape_of(operand(node, 1)), *[1] * (rank - 2)]))
    return only_first(node, _normalized(b, x, g, range(2, rank), attribute(node, "epsilon", 1e-5)))


@vjp("LayerNormalization", inputs=[0])
def layer_normalization(
    b: Emitter, node: ir.Node, dy: ir.Value | None, *others: ir.Value | None
) -> Gradients:
    """x̂ over the last axes; γ broadcasts."""
    if dy is None or any(other is not None for other in others):
        raise Unsupported("its Mean or InvStdDev output is used")
    x = operand(node, 0)
    axes = _last_axes(node, x)
    g = b.op("Mul", dy, operand(node, 1))
    return only_first(node, _normalized(b, x, g, axes, attribute(node, "epsilon", 1e-5)))


@vjp("RMSNormalization", inputs=[0])
def rms_normalization(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """x̂ = x/√(mean(x²) + ε) over the last axes: dx = (g − x̂·mean(g·x̂)) / √(mean(x²) + ε)."""
    x = operand(node, 0)
    axes = _last_axes(node, x)
    g = b.op("Mul", dy, operand(node, 1))
    return only_first(node, _normalized(b, x, g, axes, attribute(node, "epsilon", 1e-5), centred=False))


@vjp("GroupNormalization", inputs=[0])
def group_normalization(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """x̂ over the channels of a group and the spatial axes; γ is one a channel."""
    x, gamma = operand(node, 0), operand(node, 1)
    batch, channels, *spatial = shape_of(x)
    groups = attribute(node, "num_groups", 1)
    if b.opset < 21:
        raise Unsupported("before opset 21 it is deprecated, and onnx.checker refuses it")
    size = static(channels) // groups
    grouped = (batch, groups, size, *spatial)
    column = [groups, size, *[1] * len(spatial)]
    g = b.op("Mul", b.reshape(dy, grouped), b.reshape(gamma, column))
    axes = range(2, len(grouped))
    dx = _normalized(b, b.reshape(x, grouped), g, axes, attribute(node, "epsilon", 1e-5))
    return only_first(node, b.reshape(dx, shape_of(x)))


@vjp("LpNormalization")
def lp_normalization(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x/‖x‖ along one axis: dx = (dy − y′·Σ dy·y)/‖x‖, y′ = y for p = 2 and sign(x) for p = 1."""
    x, y = operand(node, 0), node.outputs[0]
    axis = [attribute(node, "axis", -1)]
    p = attribute(node, "p", 2)
    norm = not_zero(b, b.reduce("ReduceL1" if p == 1 else "ReduceL2", x, axis))
    along = b.op("Sign", x) if p == 1 else y
    total = b.reduce("ReduceSum", b.op("Mul", dy, y), axis)
    return (b.op("Div", b.op("Sub", dy, b.op("Mul", along, total)), norm),)


@vjp("LRN")
def local_response_normalization(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x·s^(−β), s = k + α/n · B·x², B the band matrix that sums over n neighbouring channels.

    So::

    dx = dy·s^(−β) − 2αβ/n · x · Bᵀ(dy·x·s^(−β−1))
    """
    x = operand(node, 0)
    batch, channels, *spatial = shape_of(x)
    c, size = static(channels), attribute(node, "size", 1)
    alpha, beta = attribute(node, "alpha", 1e-4), attribute(node, "beta", 0.75)
    before = (size - 1) // 2
    distance = np.arange(c)[None] - np.arange(c)[:, None]
    band = ((distance >= -before) & (distance < size - before)).astype(np.float64)
    columns: tuple[Dim, ...] = (batch, c, int(np.prod([static(n) for n in spatial])))
    x, dy = b.reshape(x, columns), b.reshape(dy, columns)
    squares = b.op("MatMul", b.like(x, band * alpha / size), b.op("Mul", x, x), shape=columns)
    s = b.op("Add", squares, b.like(x, attribute(node, "bias", 1.0)))
    scaled = b.op("Mul", dy, b.op("Pow", s, b.like(x, -beta)))
    inner = b.op("Div", b.op("Mul", scaled, x), s)
    spread = b.op("MatMul", b.like(x, band.T * (2 * alpha * beta / size)), inner, shape=columns)
    return (b.reshape(b.op("Sub", scaled, b.op("Mul", x, spread)), (batch, channels, *spatial)),)


def _last_axes(node: ir.Node, x: ir.Value) -> Sequence[int]:
    rank = len(shape_of(x))
    return range(attribute(node, "axis", -1) % rank, rank)


def _normalized(
    b: Emitter, x: ir.Value, g: ir.Value, axes: Sequence[int], epsilon: float, *, centred: bool = True
) -> ir.Value:
    """The equation of the module; without μ, and so without mean(g), if not ``centred``."""
    if centred:
        x = b.op("Sub", x, b.reduce("ReduceMean", x, axes))
    variance = b.reduce("ReduceMean", b.op("Mul", x, x), axes)
    sigma = b.op("Sqrt", b.op("Add", variance, b.like(x, epsilon)))
    unit = b.op("Div", x, sigma)
    along = b.op("Mul", unit, b.reduce("ReduceMean", b.op("Mul", g, unit), axes))
    if centred:
        g = b.op("Sub", g, b.reduce("ReduceMean", g, axes))
    return b.op("Div", b.op("Sub", g, along), sigma)
