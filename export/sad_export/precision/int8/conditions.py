"""Comparisons of codes, channels last: the masks of the backward."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ...graph.values import constant_array
from .codes import CodesWriter
from .grid import LARGEST_CODE

_COMPARISONS = {"Greater": "Greater", "GreaterOrEqual": "Greater", "Less": "Less", "LessOrEqual": "Less"}


def _compare_with_constant(w: CodesWriter, node: ir.Node) -> None:
    """y > c as a comparison of codes, if y is codes and c one number."""
    value, bound = node.inputs
    number = constant_array(bound)
    if value is None or number is None or number.size != 1 or not w.has_codes(value):
        return
    grid = w.grids[value]
    level = float(number.reshape(-1)[0])
    greater = _COMPARISONS[node.op_type] == "Greater"
    code = grid.code_beside(level, up=not greater)
    if node.op_type.endswith("OrEqual") and code == grid.code_beside(level, up=greater):
        code += -1 if greater else 1
    if not 0 <= code <= LARGEST_CODE:
        return
    output = node.outputs[0]
    w.keep_condition(
        output,
        w.emit(
            _COMPARISONS[node.op_type],
            [w.codes(value), w.code(grid, code)],
            like=output,
            shape=w.last(output),
            dtype=ir.DataType.BOOL,
        ),
    )


def _compare_codes(w: CodesWriter, node: ir.Node) -> None:
    """Equality of numbers on the same grid is that of their codes."""
    a, b = node.inputs
    if a is None or b is None or not (w.has_codes(a) and w.has_codes(b)) or w.grids[a] != w.grids[b]:
        return
    output = node.outputs[0]
    operands = [w.codes(a), w.codes(b)]
    w.keep_condition(
        output, w.emit("Equal", operands, like=output, shape=w.last(output), dtype=ir.DataType.BOOL)
    )


def _combine(w: CodesWriter, node: ir.Node) -> None:
    if not all(w.has_condition(value) for value in node.inputs):
        return
    output = node.outputs[0]
    operands = [w.condition(value) for value in node.inputs if value is not None]
    w.keep_condition(
        output, w.emit(node.op_type, operands, like=output, shape=w.last(output), dtype=ir.DataType.BOOL)
    )


_CONDITIONS: dict[str, Callable[[CodesWriter, ir.Node], None]] = {
    **dict.fromkeys(_COMPARISONS, _compare_with_constant),
    **dict.fromkeys(("And", "Not", "Or", "Xor"), _combine),
    "Equal": _compare_codes,
}


def write_condition(w: CodesWriter, node: ir.Node) -> None:
    """Write a comparison of codes beside that of floats, which is dropped unless something else reads it."""
    if (write := _CONDITIONS.get(node.op_type)) is not None:
        write(w, node)
