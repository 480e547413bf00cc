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

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...graph.expression import Array
from ...graph.nodes import attribute, operand
from ...graph.operators import MOVING_CODES, WEIGHTED
from ...graph.values import constant_array
from .codes import CodesWriter
from .conditions import write_condition
from .grid import LARGEST_CODE
from .moved_codes import move_codes
from .plan import IntegerPlan, mask_of

_LEAST_OUTPUTS = 16
"""Below this many output channels an integer convolution leaves part of a vector empty and takes half as long
again as with it filled by zeros (64 → 12 channels, 4×4, 112²: 6.2 ms against 4.4)."""


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
        return move_codes(w, node)
    write_condition(w, node)
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
        operands = [w.dequantized(operand(node, 0))]
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
    operands = [w.dequantized(operand(node, 0)), *_weights(w, plan, node, axis=0, filling=filling)]
    real = w.emit("Conv", operands, like=output, shape=[n, channels + filling, *spatial], copied=copied)
    w.keep_plain(value, w.quantize(real, value))
    if filling:
        w.keep(value, w.sliced(w.codes(value), value, 3, 0, channels))


def _saturate(w: CodesWriter, value: ir.Value, bound: float) -> None:
    """Codes up to that of a Clip's bound, where the grid goes on: a Concat shares it with larger values."""
    grid = w.grids[value]
    code = grid.code_beside(bound, up=True)
    if code < LARGEST_CODE:
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
        products = (scales * np.float32(w.grids[operand(node, 0)].scale)).astype(np.float32)
        operands.append(w.bias(str(node.name), bias, products))
    return operands


def _numbers(plan: IntegerPlan, value: ir.Value | None) -> Array:
    array = constant_array(value)
    return plan.constants[value] if array is None and value is not None else np.asarray(array)
