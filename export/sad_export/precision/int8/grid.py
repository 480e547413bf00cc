"""Numbers as 8-bit codes: real = scale · (code − zero)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]

_MIDDLE = 128
LARGEST_CODE = 255
_LARGEST_SIGNED = 127

_ON_A_CODE = 1e-3
"""A scale is a float32 number, so that the end of a range is on its last code but for this."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """The codes of one tensor.

    Attributes:
        scale: Distance of neighbouring codes; a float32 number.
        zero: The code of 0. Zero is always exact: padding and masks are made of it.
        signed: Whether codes are from −128 to 127 instead of 0 to 255.
    """

    scale: float
    zero: int
    signed: bool = False

    @classmethod
    def between(cls, low: float, high: float) -> Grid:
        """All 256 codes from min(low, 0) to max(high, 0): activations in onnxruntime.

        Its CPU has fast kernels for unsigned activations and signed weights only. Without a negative part
        code 0 is 0, and saturation there is a ReLU.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        scale = _float32((high - low) / LARGEST_CODE)
        return cls(scale, round(-low / scale))

    @classmethod
    def around_zero(cls, low: float, high: float) -> Grid:
        """Unsigned codes with zero in the middle, as far below as above: gradients."""
        return cls(_float32(max(-low, high) / _LARGEST_SIGNED), _MIDDLE)

    @classmethod
    def symmetric(cls, low: float, high: float) -> Grid:
        """Signed codes with zero at 0: TensorRT has no other."""
        return cls(_float32(max(-low, high) / _LARGEST_SIGNED), 0, signed=True)

    @property
    def dtype(self) -> ir.DataType:
        """Of the codes."""
        return ir.DataType.INT8 if self.signed else ir.DataType.UINT8

    def code(self, number: float) -> int:
        """The nearest code, saturated."""
        low, high = (-_LARGEST_SIGNED - 1, _LARGEST_SIGNED) if self.signed else (0, LARGEST_CODE)
        return int(np.clip(np.rint(number / self.scale) + self.zero, low, high))

    def code_beside(self, number: float, *, up: bool) -> int:
        """The code of a number if it has one, else the next one above or below it; not saturated."""
        exact = self.zero + number / self.scale
        nearest = round(exact)
        if abs(exact - nearest) < _ON_A_CODE:
            return nearest
        return math.ceil(exact) if up else math.floor(exact)


def weight_codes(weight: Array, axis: int) -> tuple[Array, Array]:
    """Signed codes of a weight with one scale for each index of an axis.

    Args:
        weight: Any shape, float.
        axis: Of the outputs that the weight leads to.

    Returns:
        Codes from −127 to 127 of the same shape, and the float32 scales.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    scales = np.where(largest > 0, largest / _LARGEST_SIGNED, 1.0).astype(np.float32)
    codes = np.clip(np.rint(weight / scales), -_LARGEST_SIGNED, _LARGEST_SIGNED).astype(np.int8)
    return codes, scales.reshape(-1)


def _float32(scale: float) -> float:
    """As a runtime reads it; a tensor of zeros gets scale 1."""
    rounded = float(np.float32(scale))
    return rounded if rounded > 0 else 1.0
