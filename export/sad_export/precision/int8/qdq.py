"""Round the inputs of a graph's layers to 8 bits, in float32: what TensorRT turns into integer kernels.

1. An activation that a quantised layer reads goes through QuantizeLinear and DequantizeLinear, one pair a
   value. The layer's output stays a float: where the next layer quantises it, TensorRT fuses, and masks and
   maxima of the gradient read it unrounded.
2. The layer's weight is stored as codes, once, behind one DequantizeLinear for all that read it, the backward
   too if its own first pass is quantised.

The gradient goes straight through the rounding, which has none of its own.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...graph.expression import Array
from ...graph.initializers import initializer
from ...graph.operators import WEIGHTED
from ...graph.values import constant_array
from ...parts import Part, mark, parts_of
from .grid import Grid, weight_codes
from .plan import constants_of, is_plain_linear
from .ranges import ACTIVATIONS, measured_ranges

_AXIS_OF_OUTPUTS = {"Conv": 0, "MatMul": 1}


def simulate_integers(
    model: ir.Model, parts: frozenset[Part], images: Array, *, method: str = "percentile"
) -> None:
    """Put the layers of some passes of a float32 two-pass graph on symmetric 8-bit grids, in place.

    Args:
        model: A two-pass graph, its parts marked; what is put in belongs to the part that reads it.
        parts: ``FIRST``, ``SECOND`` or both; the backward goes with ``FIRST``.
        images: (N, C, H, W) float32 in [0, 1], real ones, for the ranges.
        method: Of :func:`~.ranges.measured_ranges`.
    """
    graph = model.graph
    of_part = parts_of(graph)
    constant = constants_of(graph)
    layers = [
        node
        for node in graph
        if of_part[node] in parts and node.op_type in WEIGHTED and is_plain_linear(node, constant)
    ]
    read_by = {value: of_part[node] for node in layers if (value := node.inputs[0]) is not None}
    ranges = measured_ranges(model, dict.fromkeys(read_by, ACTIVATIONS), images, method=method)
    rounded = {}
    for value, part in read_by.items():
        rounded[value] = _rounded(graph, value, Grid.symmetric(*ranges[value]))
        mark(graph, part)
    readers = parts | ({Part.BACKWARD} if Part.FIRST in parts else frozenset())
    for node in layers:
        assert node.inputs[0] is not None
        node.replace_input_with(0, rounded[node.inputs[0]])
        weight = node.inputs[1]
        if weight is None or constant_array(weight) is None:  # done with an earlier layer
            continue
        default = 0 if node.attributes.get_int("transB", 0) else 1
        decoded = _stored_as_codes(graph, weight, _AXIS_OF_OUTPUTS.get(node.op_type, default))
        mark(graph, of_part[node])
        for use in list(weight.uses()):
            if of_part.get(use.node) in readers:
                use.node.replace_input_with(use.idx, decoded)
    graph.sort()


def _rounded(graph: ir.Graph, value: ir.Value, grid: Grid) -> ir.Value:
    scale = initializer(graph, f"{value.name}/scale", np.array(grid.scale, dtype=np.float32))
    zero = initializer(graph, "int8/zero", np.array(0, dtype=np.int8))
    codes = _append(graph, "QuantizeLinear", [value, scale, zero], value, grid.dtype)
    return _append(graph, "DequantizeLinear", [codes, scale, zero], value, ir.DataType.FLOAT)


def _stored_as_codes(graph: ir.Graph, weight: ir.Value, axis: int) -> ir.Value:
    array = constant_array(weight)
    assert array is not None
    codes, scales = weight_codes(array, axis)
    stored = [
        initializer(graph, f"{weight.name}/codes", codes),
        initializer(graph, f"{weight.name}/scales", scales),
        initializer(graph, f"int8/zeros_{len(scales)}", np.zeros(len(scales), dtype=np.int8)),
    ]
    return _append(graph, "DequantizeLinear", stored, weight, ir.DataType.FLOAT, axis=axis)


def _append(
    graph: ir.Graph,
    op_type: str,
    inputs: list[ir.Value],
    like: ir.Value,
    dtype: ir.DataType,
    **attributes: int,
) -> ir.Value:
    name = f"{like.name}/{op_type}"
    output = ir.Value(name=name, shape=like.shape, type=ir.TensorType(dtype))
    attrs = ir.convenience.convert_attributes(attributes)
    graph.append(ir.Node("", op_type, inputs, attrs, outputs=[output], name=name))
    return output
