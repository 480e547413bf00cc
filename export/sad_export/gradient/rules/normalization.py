"""Normalisations over some axes.

With x̂ = (x − μ)/σ, y = γ·x̂ + β and h = dy·γ::

    dx = (h − mean(h) − x̂·mean(h·x̂)) / σ

μ and σ are computed again from x: TensorRT refuses a LayerNormalization that also gives them out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...graph.expression import Expr
from ...graph.functions import sign, sqrt
from ...graph.values import Dim, Unsupported, static
from ..registry import Gradient, vjp
from ..words import Words
from .reduction import not_zero


@vjp("BatchNormalization", inputs=[0])
def batch_normalization(
    x: Expr,
    gamma: Expr,
    beta: Expr,
    mean: Expr,
    variance: Expr,
    *,
    dy: Expr,
    epsilon: float = 1e-5,
    training_mode: int = 0,
) -> Gradient:
    """y = γ·(x − μ)/√(σ² + ε) + β with stored statistics: dx = dy · γ/√(σ² + ε), computed in float64."""
    if training_mode:
        raise Unsupported("it is in training mode; export the model in eval mode")
    wide = variance.known("variances").astype(np.float64)
    factor = gamma.known("scales").astype(np.float64) / np.sqrt(wide + epsilon)
    return dy * factor.reshape(1, -1, *[1] * (dy.rank - 2))


@vjp("InstanceNormalization", inputs=[0])
def instance_normalization(x: Expr, gamma: Expr, beta: Expr, *, dy: Expr, epsilon: float = 1e-5) -> Gradient:
    """x̂ over the spatial axes; γ of shape (C)."""
    h = dy * gamma.reshape([*gamma.shape, *[1] * (x.rank - 2)])
    return _normalized(x, h, range(2, x.rank), epsilon)


@vjp("LayerNormalization", inputs=[0])
def layer_normalization(
    x: Expr,
    gamma: Expr,
    beta: Expr | None = None,
    *,
    dys: Sequence[Expr | None],
    axis: int = -1,
    epsilon: float = 1e-5,
) -> Gradient:
    """x̂ over the last axes; γ broadcasts."""
    dy, *others = dys
    if dy is None or any(other is not None for other in others):
        raise Unsupported("its Mean or InvStdDev output is used")
    return _normalized(x, dy * gamma, range(axis % x.rank, x.rank), epsilon)


@vjp("RMSNormalization", inputs=[0])
def rms_normalization(x: Expr, gamma: Expr, *, dy: Expr, axis: int = -1, epsilon: float = 1e-5) -> Gradient:
    """x̂ = x/√(mean(x²) + ε) over the last axes: dx = (h − x̂·mean(h·x̂)) / √(mean(x²) + ε)."""
    return _normalized(x, dy * gamma, range(axis % x.rank, x.rank), epsilon, centred=False)


@vjp("GroupNormalization", inputs=[0])
def group_normalization(
    x: Expr, gamma: Expr, beta: Expr, *, dy: Expr, g: Words, num_groups: int = 1, epsilon: float = 1e-5
) -> Gradient:
    """x̂ over the channels of a group and the spatial axes; γ is one per channel."""
    batch, channels, *spatial = x.shape
    if g.opset < 21:
        raise Unsupported("before opset 21 it is deprecated, and onnx.checker refuses it")
    size = static(channels) // num_groups
    grouped = (batch, num_groups, size, *spatial)
    column = [num_groups, size, *[1] * len(spatial)]
    h = dy.reshape(grouped) * gamma.reshape(column)
    return _normalized(x.reshape(grouped), h, range(2, len(grouped)), epsilon).reshape(x.shape)


@vjp("LpNormalization")
def lp_normalization(x: Expr, *, y: Expr, dy: Expr, axis: int = -1, p: int = 2) -> Gradient:
    """y = x/‖x‖ along one axis: dx = (dy − y′·Σ dy·y)/‖x‖, y′ = y for p = 2 and sign(x) for p = 1."""
    norm = not_zero(x.reduce("ReduceL1" if p == 1 else "ReduceL2", [axis]))
    along = sign(x) if p == 1 else y
    return (dy - along * (dy * y).sum([axis])) / norm


@vjp("LRN")
def local_response_normalization(
    x: Expr, *, dy: Expr, size: int = 1, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Gradient:
    """y = x·s^(−β), s = k + α/n · B·x², B the band matrix that sums over n neighbouring channels.

    So::

    dx = dy·s^(−β) − 2αβ/n · x · Bᵀ(dy·x·s^(−β−1))
    """
    shape = x.shape
    batch, channels, *spatial = shape
    c = static(channels)
    before = (size - 1) // 2
    distance = np.arange(c)[None] - np.arange(c)[:, None]
    band = ((distance >= -before) & (distance < size - before)).astype(np.float64)
    columns: tuple[Dim, ...] = (batch, c, int(np.prod([static(n) for n in spatial])))
    x, dy = x.reshape(columns), dy.reshape(columns)
    s = x.like(band * alpha / size).op("MatMul", x * x, shape=columns) + bias
    scaled = dy * s**-beta
    summed = x.like(band.T * (2 * alpha * beta / size)).op("MatMul", scaled * x / s, shape=columns)
    return (scaled - x * summed).reshape(shape)


def _normalized(x: Expr, h: Expr, axes: Sequence[int], epsilon: float, *, centred: bool = True) -> Expr:
    """The equation of the module; without μ, and so without mean(h), if not ``centred``."""
    if centred:
        x = x - x.mean(axes)
    sigma = sqrt((x * x).mean(axes) + epsilon)
    unit = x / sigma
    along = unit * (h * unit).mean(axes)
    if centred:
        h = h - h.mean(axes)
    return (h - along) / sigma
