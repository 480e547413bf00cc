"""Changes of precision: the gradient goes straight through them, in the type that x had.

A quantised value's gradient is that of the number it stands for, so that DequantizeLinear and what moves
integers between the two hand it on as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from .emitter import Emitter
from .rules import Gradients, attribute, constant_operand, only_first, operand, vjp
from .values import Unsupported, shape_of


@vjp("Cast", "CastLike")
def cast(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """Float to float: dx = dy in x's type. CastLike reads only the type of its other input."""
    return only_first(node, b.cast(dy, operand(node, 0)))


@vjp("DequantizeLinear", inputs=[0], quantized=True)
def dequantize(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy, in units of the number that x stands for."""
    return only_first(node, dy)


@vjp("QuantizeLinear", inputs=[0], quantized=True)
def quantize(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy · 1[low ≤ round(x/s) + z ≤ high]: straight through the rounding, 0 where x is saturated.

    As PyTorch's fake quantisation.
    """
    x, y = operand(node, 0), node.outputs[0]
    scale, zero = constant_operand(node, 1, "scales"), constant_operand(node, 2, "zero points")
    assert scale is not None
    assert y.dtype is not None
    low, high = _range(y.dtype)
    wide = scale.astype(np.float64)
    offset = np.zeros_like(wide) if zero is None else zero.astype(np.float64)
    # Half a step beyond the range still rounds into it.
    margin = 0.5 if not y.dtype.is_floating_point() else 0.0
    bounds = [(low - margin - offset) * wide, (high + margin - offset) * wide]
    lowest, highest = (b.like(x, _spread(node, bound, x)) for bound in bounds)
    inside = b.op("And", b.op("GreaterOrEqual", x, lowest), b.op("LessOrEqual", x, highest))
    return only_first(node, b.masked(b.cast(dy, x), inside))


def _range(dtype: ir.DataType) -> tuple[float, float]:
    if dtype.is_floating_point():
        return -_largest_float(dtype), _largest_float(dtype)
    bits = int(dtype.itemsize * 8)
    if dtype.is_signed():
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1


def _largest_float(dtype: ir.DataType) -> float:
    import ml_dtypes  # comes with onnx; only float8 and float4 need it

    finfo: Any = ml_dtypes.finfo
    return float(finfo(dtype.numpy()).max)


def _spread(node: ir.Node, bound: np.ndarray[Any, Any], x: ir.Value) -> np.ndarray[Any, Any]:
    """One bound a tensor, an axis or a block of an axis, in a shape that broadcasts to x."""
    rank = len(shape_of(x))
    axis = attribute(node, "axis", 1)
    if bound.size == 1:
        return bound.reshape(-1)
    if bound.ndim == 1:
        return bound.reshape(-1, *[1] * (rank - 1 - axis % rank))
    block = attribute(node, "block_size", 0)
    length = shape_of(x)[axis]
    if not block or isinstance(length, str):
        raise Unsupported("its scales have several axes")
    repeated: np.ndarray[Any, Any] = np.repeat(bound, block, axis=axis)
    return repeated.take(range(length), axis=axis)
