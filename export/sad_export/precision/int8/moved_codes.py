"""Operators that only move elements, on codes, channels last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from ...graph.nodes import attribute, operand
from ...graph.values import constant_array
from .codes import CodesWriter

_LAST_AXIS = {0: 0, 1: 3, 2: 1, 3: 2}
"""Where an axis of (N, C, H, W) is in (N, H, W, C)."""


def _plain(w: CodesWriter, node: ir.Node) -> bool:
    """Any operator that takes integers as it takes floats, in the order of the float32 graph."""
    if len(node.outputs) != 1:
        return False
    output = node.outputs[0]
    inputs = [w.plain_codes(v) if v is not None and w.has_codes(v) else v for v in node.inputs]
    moved = w.emit(
        node.op_type, inputs, like=output, dtype=w.grids[output].dtype, copied=list(node.attributes.values())
    )
    w.keep_plain(output, moved)
    return True


def _slice(w: CodesWriter, node: ir.Node) -> bool:
    axes = constant_array(node.inputs[3]) if len(node.inputs) > 3 else None
    if axes is None or len(node.outputs[0].shape or ()) != 4:
        return _plain(w, node)
    output = node.outputs[0]
    places = w.ints(*(_LAST_AXIS[int(axis) % 4] for axis in axes))
    inputs = [w.codes(operand(node, 0)), node.inputs[1], node.inputs[2], places, *node.inputs[4:]]
    w.keep(output, w.emit("Slice", inputs, like=output, shape=w.last(output), dtype=w.grids[output].dtype))
    return True


def _pad(w: CodesWriter, node: ir.Node) -> bool:
    output = node.outputs[0]
    pads = constant_array(node.inputs[1])
    constant_mode = attribute(node, "mode", "constant") == "constant"
    if pads is None or not constant_mode or len(node.inputs) > 3 or len(output.shape or ()) != 4:
        return False
    fill = constant_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    grid = w.grids[output]
    code = w.code(grid, grid.code(0.0 if fill is None else float(fill)))
    order = sorted(_LAST_AXIS, key=_LAST_AXIS.__getitem__)
    amounts = w.ints(*(int(pads[side + axis]) for side in (0, 4) for axis in order))
    padded = w.emit(
        "Pad", [w.codes(operand(node, 0)), amounts, code], like=output, shape=w.last(output), dtype=grid.dtype
    )
    w.keep(output, padded)
    return True


def _concat(w: CodesWriter, node: ir.Node) -> bool:
    output = node.outputs[0]
    if len(output.shape or ()) != 4:
        return _plain(w, node)
    axis = _LAST_AXIS[attribute(node, "axis", 0) % 4]
    inputs = [w.codes(value) for value in node.inputs if value is not None]
    w.keep(
        output,
        w.emit(
            "Concat",
            inputs,
            like=output,
            shape=w.last(output),
            dtype=w.grids[output].dtype,
            attributes={"axis": axis},
        ),
    )
    return True


def _split(w: CodesWriter, node: ir.Node) -> bool:
    """As slices, one an output."""
    source = operand(node, 0)
    axis = attribute(node, "axis", 0)
    sizes = [output.shape[axis] if output.shape is not None else None for output in node.outputs]
    if len(source.shape or ()) != 4 or not all(isinstance(size, int) for size in sizes):
        return False
    start = 0
    for output, size in zip(node.outputs, sizes, strict=True):
        assert isinstance(size, int)
        w.keep(output, w.sliced(w.codes(source), output, _LAST_AXIS[axis % 4], start, start + size))
        start += size
    return True


def _depth_to_space(w: CodesWriter, node: ir.Node) -> bool:
    """Phases in their places: with channels last, rows of W·C elements set side by side.

    (N, H, W, C) for each phase (i, j) → (N, H, W·s·C) for each i → (N, H·s, W·s, C). Phases that the graph
    stacked before are taken as they were; zeros after phase 0 are padding.
    """
    source, output = operand(node, 0), node.outputs[0]
    size = attribute(node, "blocksize", 0)
    if attribute(node, "mode", "DCR") != "DCR" or output.shape is None:
        return _plain(w, node)
    n, c, height, width = output.shape
    assert isinstance(c, int) and isinstance(height, int) and isinstance(width, int)
    h, row = height // size, width * c
    producer = source.producer()
    if producer is not None and _pads_behind_channels(producer, c):
        wide = _widened(w, w.codes(operand(producer, 0)), output, c * size, [n, h, width // size])
        rows = _widened(w, _reshaped(w, wide, output, [n, h, row]), output, row * size, [n, h])
    else:
        phases = _phases(w, source, producer, c, size)
        parts = [phases[i * size : (i + 1) * size] for i in range(size)]
        lines = [
            _reshaped(w, _joined(w, part, output, [n, h, width // size, c * size]), output, [n, h, row])
            for part in parts
        ]
        rows = _joined(w, lines, output, [n, h, row * size])
    w.keep(output, _reshaped(w, rows, output, [n, height, width, c]))
    return True


def _pads_behind_channels(node: ir.Node, channels: int) -> bool:
    source = node.inputs[0]
    return (
        node.op_type == "Pad"
        and source is not None
        and source.shape is not None
        and source.shape[1] == channels
    )


def _phases(
    w: CodesWriter, source: ir.Value, producer: ir.Node | None, channels: int, size: int
) -> list[ir.Value]:
    if producer is not None and producer.op_type == "Concat" and len(producer.inputs) == size**2:
        return [w.codes(value) for value in producer.inputs if value is not None]
    codes = w.codes(source)
    assert codes.shape is not None
    n, h, width, _ = codes.shape
    phases = []
    for i in range(size**2):
        places = [w.ints(i * channels), w.ints((i + 1) * channels), w.ints(3)]
        shape = [n, h, width, channels]
        phases.append(w.emit("Slice", [codes, *places], like=source, shape=shape, dtype=codes.dtype))
    return phases


def _joined(w: CodesWriter, parts: Sequence[ir.Value], like: ir.Value, shape: Sequence[Any]) -> ir.Value:
    axis = {"axis": len(shape) - 1}
    return w.emit("Concat", parts, like=like, shape=shape, dtype=parts[0].dtype, attributes=axis)


def _widened(w: CodesWriter, codes: ir.Value, like: ir.Value, length: int, before: Sequence[Any]) -> ir.Value:
    """The last axis padded to a length with the code of zero."""
    assert codes.shape is not None
    have = codes.shape[-1]
    assert isinstance(have, int)
    grid = w.grids[like]
    pads = w.ints(*[0] * (2 * len(before) + 1), length - have)
    operands = [codes, pads, w.code(grid, grid.zero)]
    return w.emit("Pad", operands, like=like, shape=[*before, length], dtype=codes.dtype)


def _reshaped(w: CodesWriter, codes: ir.Value, like: ir.Value, shape: Sequence[Any]) -> ir.Value:
    numbers = w.ints(0, *shape[1:])  # 0: the batch, as it is
    return w.emit("Reshape", [codes, numbers], like=like, shape=shape, dtype=codes.dtype)


_SPECIAL: dict[str, Callable[[CodesWriter, ir.Node], bool]] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
}


def move_codes(w: CodesWriter, node: ir.Node) -> bool:
    """Write a node that only moves elements on codes; False where it has no such form."""
    return _SPECIAL.get(node.op_type, _plain)(w, node)
