"""Pools of the whole image, and pools of p-norms.

GlobalMaxPool          dx = dy at the first maximum in scan order, as PyTorch's adaptive pool
LpPool, GlobalLpPool   y = (Σ|x|^p)^(1/p) over the window, so dx = sign(x)·|x|^(p−1) · Σ_windows dy·y^(1−p)
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from .emitter import Emitter
from .reduction import not_zero
from .rules import Gradients, attribute, operand, vjp
from .values import shape_of, static
from .windows import Axis, scatter, taps, window_axes


@vjp("GlobalMaxPool")
def global_max_pool(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """ArgMax over the flat image gives the first maximum; comparing with all positions marks it."""
    x = operand(node, 0)
    batch, channels, *spatial = shape_of(x)
    size = math.prod(static(n) for n in spatial)
    flat = b.reshape(x, (batch, channels, size))
    first = b.op("ArgMax", flat, axis=2, keepdims=1, shape=(batch, channels, 1), dtype=ir.DataType.INT64)
    chosen = b.op("Equal", first, b.constant(np.arange(size)), shape=(batch, channels, size))
    dx = b.op("Mul", b.cast(chosen, dy), b.reshape(dy, (batch, channels, 1)))
    return (b.reshape(dx, shape_of(x)),)


@vjp("GlobalLpPool")
def global_lp_pool(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """One window."""
    return (_times_power(b, node, _share(b, node, dy)),)


@vjp("LpPool")
def lp_pool(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """Windows that overlap: each tap gets its window's share."""
    axes = window_axes(node, attribute(node, "kernel_shape", ()))
    share = _share(b, node, dy)
    # The window is a product of intervals, so one axis after the other needs Σ k taps instead of Π k.
    for i, axis in enumerate(axes):
        others = [Axis(n, n, 1, 1, 1, 0, 0) for n in map(static, shape_of(share)[2:])]
        line = [*others[:i], axis, *others[i + 1 :]]
        share = scatter(b, dict.fromkeys(taps(line), share), line)
    return (_times_power(b, node, share),)


def _share(b: Emitter, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dy · y^(1−p); 0 where y is."""
    p = attribute(node, "p", 2)
    y = not_zero(b, node.outputs[0])
    if p == 1:
        return dy
    return b.op("Div", dy, y if p == 2 else b.op("Pow", y, b.like(y, p - 1)))


def _times_power(b: Emitter, node: ir.Node, share: ir.Value) -> ir.Value:
    """share · sign(x)·|x|^(p−1)."""
    x, p = operand(node, 0), attribute(node, "p", 2)
    if p == 1:
        return b.op("Mul", share, b.op("Sign", x))
    power = x if p == 2 else b.op("Mul", b.op("Sign", x), b.op("Pow", b.op("Abs", x), b.like(x, p - 1)))
    return b.op("Mul", share, power)
