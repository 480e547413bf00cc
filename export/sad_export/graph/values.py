"""What the rules ask of the values of a graph: shape, element type, numbers.

Every question about something that is not known, or not static, is answered by :class:`Unsupported`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

Dim = int | str
"""A dimension: a number, or the name of a symbolic one (the batch)."""

HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""The types of half precision."""

# Names a dimension that shape inference left open; two of them are never taken to be equal.
_UNKNOWN = "?"


class Unsupported(Exception):  # noqa: N818 - a reason, not a failure
    """Raised by a rule that cannot take a node; the message says why, in the words of the forward graph."""


def broadcast(*shapes: Sequence[Dim]) -> tuple[Dim, ...]:
    """The shape of values that meet in one elementwise operator."""
    rank = max(len(shape) for shape in shapes)
    result: list[Dim] = [1] * rank
    for shape in shapes:
        for axis, n in enumerate(shape, start=rank - len(shape)):
            # Of a number and a name the number is sure: the other is then 1 or the same.
            if n != 1 and (result[axis] == 1 or isinstance(n, int)):
                result[axis] = n
    return tuple(result)


def shape_of(value: ir.Value) -> tuple[Dim, ...]:
    """The shape of a value; symbolic dimensions as their names.

    Raises:
        Unsupported: The value has no shape.
    """
    if value.shape is None:
        raise Unsupported(f"the shape of {value.name!r} is not known")
    return tuple(
        dim if isinstance(dim, int) else str(dim.value or f"{_UNKNOWN}{value.name}") for dim in value.shape
    )


def ir_shape(shape: Sequence[Dim]) -> ir.Shape:
    """The shape as onnx-ir writes it; unknown dimensions have no name."""
    return ir.Shape([None if isinstance(dim, str) and dim.startswith(_UNKNOWN) else dim for dim in shape])


def text_of(shape: Sequence[Dim]) -> str:
    """The shape as messages write it."""
    return "(" + ", ".join(str(n) for n in shape) + ")"


def static(dim: Dim) -> int:
    """A dimension that must be a number here.

    Raises:
        Unsupported: It is symbolic; only the batch may be, and no rule does arithmetic on the batch.
    """
    if not isinstance(dim, int):
        raise Unsupported(f"it needs the dimension {dim!r} to be static")
    return dim


def dtype_of(value: ir.Value) -> ir.DataType:
    """The element type of a value.

    Raises:
        Unsupported: It has none.
    """
    if value.dtype is None:
        raise Unsupported(f"the element type of {value.name!r} is not known")
    return value.dtype


def constant_array(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The numbers of a constant value, or ``None`` if it is computed (or absent)."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()
