"""Changes of precision: the gradient goes straight through them, in the type that x had.

A quantised value's gradient is that of the number it stands for, so that DequantizeLinear and what moves
integers between the two hand it on as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from ...graph.expression import Expr
from ...graph.values import Unsupported
from ..registry import Gradient, vjp


@vjp("Cast", "CastLike")
def cast(x: Expr, like: Expr | None = None, *, dy: Expr) -> Gradient:
    """Float to float: dx = dy in x's type. CastLike reads only the type of its other input."""
    return dy.cast(x)


@vjp("DequantizeLinear", inputs=[0], quantized=True)
def dequantize(x: Expr, *, dy: Expr) -> Gradient:
    """dx = dy, in units of the number that x stands for."""
    return dy


@vjp("QuantizeLinear", inputs=[0], quantized=True)
def quantize(
    x: Expr,
    scale: Expr,
    zero_point: Expr | None = None,
    *,
    y: Expr,
    dy: Expr,
    axis: int = 1,
    block_size: int = 0,
) -> Gradient:
    """dx = dy · 1[low ≤ round(x/s) + z ≤ high]: straight through the rounding, 0 where x is saturated.

    As PyTorch's fake quantisation.
    """
    wide = scale.known("scales").astype(np.float64)
    zero = None if zero_point is None else zero_point.known("zero points")
    offset = np.zeros_like(wide) if zero is None else zero.astype(np.float64)
    low, high = _range(y.dtype)
    # Half a step beyond the range still rounds into it.
    margin = 0.5 if not y.dtype.is_floating_point() else 0.0
    lowest, highest = (
        _bounds_like(x, (bound - offset) * wide, axis, block_size) for bound in (low - margin, high + margin)
    )
    return dy.cast(x) * ((x >= lowest) & (x <= highest))


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


def _bounds_like(x: Expr, bound: np.ndarray[Any, Any], axis: int, block_size: int) -> np.ndarray[Any, Any]:
    """One bound a tensor, an axis or a block of an axis, in a shape that broadcasts to x."""
    if bound.size == 1:
        return bound.reshape(-1)
    if bound.ndim == 1:
        return bound.reshape(-1, *[1] * (x.rank - 1 - axis % x.rank))
    length = x.shape[axis]
    if not block_size or isinstance(length, str):
        raise Unsupported("its scales have several axes")
    repeated: np.ndarray[Any, Any] = np.repeat(bound, block_size, axis=axis)
    return repeated.take(range(length), axis=axis)
