"""Rewrite a float32 two-pass graph so that onnxruntime's CPU computes it in integers, the backward too.

1. A computed node stands between DequantizeLinear and QuantizeLinear, which onnxruntime fuses into one
   integer kernel.
2. A moving node moves codes; channels last, as those kernels have them.
3. A mask replaces codes by the code of zero; what it compares are codes.
4. Everything else reads and gives floats. So do the graph's input and outputs.

Gradients go straight through the rounding: the backward is that of the float32 graph, on rounded values.
Saturation has no mask of its own; ranges are chosen so that it is rare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...graph.expression import Array
from ...graph.nodes import attribute
from ...graph.operators import MOVING_CODES, WEIGHTED
from ...graph.values import constant_array
from .grid import Grid
from .plan import IntegerPlan, mask_of
from .writer import CodesWriter

_LAST_AXIS = {0: 0, 1: 3, 2: 1, 3: 2}
"""Where an axis of (N, C, H, W) is in (N, H, W, C)."""

_LEAST_OUTPUTS = 16
"""Below this many output channels an integer convolution leaves part of a vector empty and takes half as long
again as with it filled by zeros (64 → 12 channels, 4×4, 112²: 6.2 ms against 4.4)."""

_LARGEST_CODE = 255

_ON_A_CODE = 1e-3
"""A scale is a float32 number, so that the end of a range is on its last code but for this."""

_COMPARISONS = {"Greater": "Greater", "GreaterOrEqual": "Greater", "Less": "Less", "LessOrEqual": "Less"}


class IntegerPass(ir.passes.InPlacePass):
    """See the module.

    Args:
        plan: Of the graph that the pass is called on.
    """

    def __init__(self, plan: IntegerPlan) -> None:
        super().__init__()
        self._plan = plan

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place."""
        graph, plan = model.graph, self._plan
        writer = CodesWriter(graph, plan.grids)
        saturations = {value.producer() for value in plan.fused.values()}
        original = list(graph)
        for node in original:
            if node in saturations or (node in plan.nodes and _in_codes(writer, plan, node)):
                continue
            writer.adopt(node)
        for i, output in enumerate(list(graph.outputs)):
            real = writer.real(output)
            if real is not output:
                output.name, real.name = f"{output.name}/float32", output.name
                graph.outputs[i] = real
        left = list(graph)
        for node in left:
            for i in range(len(node.inputs)):
                node.replace_input_with(i, None)
        graph.remove(left)
        graph.extend(writer.nodes)
        graph.sort()
        return ir.passes.PassResult(model, modified=True)


def _in_codes(w: CodesWriter, plan: IntegerPlan, node: ir.Node) -> bool:
    """Write a node in codes, if it can be."""
    if node in plan.computed:
        _write_computed(w, plan, node)
        return True
    if (mask := mask_of(node)) is not None and w.has_codes(mask.value):
        output = node.outputs[0]
        grid = w.grids[output]
        operands = [w.condition(mask.condition), w.codes(mask.value), w.code(grid, grid.zero)]
        w.keep(output, w.emit("Where", operands, like=output, shape=w.last(output), dtype=grid.dtype))
        return True
    if node.op_type in MOVING_CODES and _all_in_codes(w, node):
        return _MOVERS.get(node.op_type, _plain)(w, node)
    if (condition := _CONDITIONS.get(node.op_type)) is not None:
        condition(w, node)  # beside the float one, which is dropped unless something else reads it
    return False


def _all_in_codes(w: CodesWriter, node: ir.Node) -> bool:
    floats = [value for value in node.inputs if value is not None and value in w.grids]
    return (
        bool(floats)
        and all(w.has_codes(value) for value in floats)
        and all(o in w.grids for o in node.outputs)
    )


# Computed


def _write_computed(w: CodesWriter, plan: IntegerPlan, node: ir.Node) -> None:
    output = node.outputs[0]
    value = plan.fused.get(output, output)
    copied = list(node.attributes.values())
    if node.op_type == "Add":
        terms = [w.dequantized(term, channels_last=True) for term in node.inputs if term is not None]
        real = w.emit("Add", terms, like=output, shape=w.last(output))
        w.keep(value, w.quantize(real, value))
    elif node.op_type == "Conv":
        _write_conv(w, plan, node, value, copied)
    else:
        operands = [w.dequantized(_first(node))]
        if node.op_type in WEIGHTED:
            operands += _weights(w, plan, node, axis=0 if attribute(node, "transB", 0) else 1)
        w.keep_plain(value, w.quantize(w.emit(node.op_type, operands, like=output, copied=copied), value))
    if value in plan.bounds:
        _saturate(w, value, plan.bounds[value])


def _write_conv(
    w: CodesWriter, plan: IntegerPlan, node: ir.Node, value: ir.Value, copied: Sequence[ir.Attr]
) -> None:
    output = node.outputs[0]
    assert output.shape is not None
    n, channels, *spatial = output.shape
    assert isinstance(channels, int)
    filling = max(0, _LEAST_OUTPUTS - channels) if attribute(node, "group", 1) == 1 else 0
    operands = [w.dequantized(_first(node)), *_weights(w, plan, node, axis=0, filling=filling)]
    real = w.emit("Conv", operands, like=output, shape=[n, channels + filling, *spatial], copied=copied)
    w.keep_plain(value, w.quantize(real, value))
    if filling:
        w.keep(value, _sliced(w, w.codes(value), value, 3, 0, channels))


def _saturate(w: CodesWriter, value: ir.Value, bound: float) -> None:
    """Codes up to that of a Clip's bound, where the grid goes on: a Concat shares it with larger values."""
    grid = w.grids[value]
    code = _code_at(grid, bound, up=True)
    if code < _LARGEST_CODE:
        operands = [w.codes(value), w.code(grid, code)]
        w.keep(value, w.emit("Min", operands, like=value, shape=w.last(value), dtype=grid.dtype))


def _weights(
    w: CodesWriter, plan: IntegerPlan, node: ir.Node, *, axis: int, filling: int = 0
) -> list[ir.Value]:
    """Weight and bias of a layer, each behind its DequantizeLinear, with output channels of zeros added."""
    weight = _numbers(plan, node.inputs[1])
    padding = [(0, filling if i == axis else 0) for i in range(weight.ndim)]
    codes, scales = w.weight(str(node.inputs[1].name), np.pad(weight, padding), axis)  # type: ignore[union-attr]
    operands = [codes]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = np.pad(_numbers(plan, node.inputs[2]).reshape(-1), (0, filling))
        products = (scales * np.float32(w.grids[_first(node)].scale)).astype(np.float32)
        operands.append(w.bias(str(node.name), bias, products))
    return operands


def _numbers(plan: IntegerPlan, value: ir.Value | None) -> Array:
    array = constant_array(value)
    return plan.constants[value] if array is None and value is not None else np.asarray(array)


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


# Moved


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
    inputs = [w.codes(_first(node)), node.inputs[1], node.inputs[2], places, *node.inputs[4:]]
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
        "Pad", [w.codes(_first(node)), amounts, code], like=output, shape=w.last(output), dtype=grid.dtype
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
    source = _first(node)
    axis = attribute(node, "axis", 0)
    sizes = [output.shape[axis] if output.shape is not None else None for output in node.outputs]
    if len(source.shape or ()) != 4 or not all(isinstance(size, int) for size in sizes):
        return False
    start = 0
    for output, size in zip(node.outputs, sizes, strict=True):
        assert isinstance(size, int)
        w.keep(output, _sliced(w, w.codes(source), output, _LAST_AXIS[axis % 4], start, start + size))
        start += size
    return True


def _sliced(w: CodesWriter, codes: ir.Value, output: ir.Value, axis: int, start: int, end: int) -> ir.Value:
    places = [w.ints(start), w.ints(end), w.ints(axis)]
    return w.emit("Slice", [codes, *places], like=output, shape=w.last(output), dtype=codes.dtype)


def _depth_to_space(w: CodesWriter, node: ir.Node) -> bool:
    """Phases in their places: with channels last, rows of W·C elements set side by side.

    (N, H, W, C) for each phase (i, j) → (N, H, W·s·C) for each i → (N, H·s, W·s, C). Phases that the graph
    stacked before are taken as they were; zeros after phase 0 are padding.
    """
    source, output = _first(node), node.outputs[0]
    size = attribute(node, "blocksize", 0)
    if attribute(node, "mode", "DCR") != "DCR" or output.shape is None:
        return _plain(w, node)
    n, c, height, width = output.shape
    assert isinstance(c, int) and isinstance(height, int) and isinstance(width, int)
    h, row = height // size, width * c
    producer = source.producer()
    if producer is not None and _pads_behind_channels(producer, c):
        wide = _widened(w, w.codes(_first(producer)), output, c * size, [n, h, width // size])
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


_MOVERS: dict[str, Callable[[CodesWriter, ir.Node], bool]] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
}


# Conditions


def _compare_with_constant(w: CodesWriter, node: ir.Node) -> None:
    """y > c as a comparison of codes, if y is codes and c one number."""
    value, bound = node.inputs
    number = constant_array(bound)
    if value is None or number is None or number.size != 1 or not w.has_codes(value):
        return
    grid = w.grids[value]
    level = float(number.reshape(-1)[0])
    greater = _COMPARISONS[node.op_type] == "Greater"
    code = _code_at(grid, level, up=not greater)
    if node.op_type.endswith("OrEqual") and code == _code_at(grid, level, up=greater):
        code += -1 if greater else 1
    if not 0 <= code <= _LARGEST_CODE:
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


def _code_at(grid: Grid, number: float, *, up: bool) -> int:
    """The code of a number, or the next one above or below it; not saturated."""
    exact = grid.zero + number / grid.scale
    nearest = round(exact)
    if abs(exact - nearest) < _ON_A_CODE:
        return nearest
    return math.ceil(exact) if up else math.floor(exact)


_CONDITIONS: dict[str, Callable[[CodesWriter, ir.Node], None]] = {
    **dict.fromkeys(_COMPARISONS, _compare_with_constant),
    **dict.fromkeys(("And", "Not", "Or", "Xor"), _combine),
    "Equal": _compare_codes,
}
