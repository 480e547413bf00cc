"""Decide which values are held as codes, and which of them share a grid.

1. A node is *computed* in integers if onnxruntime's CPU has a kernel for that: convolutions and linear
   layers with constant weights, sums, averages. The layer that gives the logits stays float32: its rows are
   the seeds of the gradient, and it decides the label.
2. A ReLU, or a Clip from 0, behind such a node is its saturation (:class:`~.grid.Grid`): it is no node of
   its own.
3. A node that only moves elements moves codes, and a mask replaces codes by that of zero. Its input and
   output are one *group* and have one grid: nothing is rounded again, and the maximum of a window is found
   again by equality of codes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ...graph.expression import Array
from ...graph.operators import AVERAGES, MOVING_CODES, WEIGHTED
from ...graph.values import constant_array
from ...parts import Part, parts_of
from .grid import Grid
from .ranges import ACTIVATIONS, GRADIENTS, evaluated, measured_ranges

_NEARLY = 0.99


@dataclasses.dataclass(frozen=True)
class Mask:
    """A product with a boolean.

    Attributes:
        value: What is kept or not.
        condition: Where it is kept; of the same shape.
    """

    value: ir.Value
    condition: ir.Value


@dataclasses.dataclass(frozen=True)
class IntegerPlan:
    """See the module.

    Attributes:
        nodes: The nodes of the parts that are to be in integers; others are left as they are.
        computed: Those of them that are computed in integers.
        fused: Output of a computed node → output of the ReLU or Clip that is its saturation.
        bounds: Upper bounds of the Clips among these, by their output.
        grids: The grid of every value that may be held as codes.
        constants: The numbers of floats that do not depend on the image.
    """

    nodes: frozenset[ir.Node]
    computed: frozenset[ir.Node]
    fused: Mapping[ir.Value, ir.Value]
    bounds: Mapping[ir.Value, float]
    grids: Mapping[ir.Value, Grid]
    constants: Mapping[ir.Value, Array]


def plan_integers(
    model: ir.Model, parts: frozenset[Part], images: Array, *, method: str = "percentile"
) -> IntegerPlan:
    """Plan the integers of a float32 two-pass graph for onnxruntime's CPU.

    Args:
        model: A two-pass graph for the target ``cpu`` and int8, its parts marked; not modified.
        parts: Which parts.
        images: (N, C, H, W) float32 in [0, 1], real ones, for the ranges.
        method: Of :func:`~.ranges.measured_ranges`.
    """
    of_part = parts_of(model.graph)
    nodes = [node for node in model.graph if of_part[node] in parts]
    constant = constants_of(model.graph)
    groups = _CodeGroups(nodes, constant)
    sources = groups.sources()

    def part_of(value: ir.Value) -> Part | None:
        producer = value.producer()
        return of_part[producer] if producer is not None else None

    measured = [value for group in sources.values() for value in group]
    gradients = {value for value in measured if part_of(value) is Part.BACKWARD}
    percentiles = {value: GRADIENTS if value in gradients else ACTIVATIONS for value in measured}
    ranges = measured_ranges(model, percentiles, images, method=method)
    grids = {}
    for root, group in sources.items():
        low, high = min(ranges[value][0] for value in group), max(ranges[value][1] for value in group)
        # A range ends at the edge of a bin. What saturates at a bound must do so at its very number: the
        # gradient there is 0.
        for value in groups.bounds.keys() & set(group):
            if ranges[value][1] > _NEARLY * groups.bounds[value]:
                high = max(high, groups.bounds[value])
        signed = low < 0 and any(value in gradients for value in group)
        grids[root] = Grid.around_zero(low, high) if signed else Grid.between(low, high)
    folded = [
        value
        for node in groups.computed
        for value in node.inputs
        if value in constant and value is not None and value.const_value is None
    ]
    return IntegerPlan(
        nodes=frozenset(nodes),
        computed=frozenset(groups.computed),
        fused=groups.fused,
        bounds=groups.bounds,
        grids={value: grids[groups.root(value)] for value in groups.values},
        constants=evaluated(model, folded, images[:1]),
    )


def constants_of(graph: ir.Graph) -> set[ir.Value]:
    """The values that do not depend on the image."""
    constant = set(graph.initializers.values())
    for node in graph:
        if all(value in constant for value in node.inputs if value is not None):
            constant.update(node.outputs)
    return constant


def mask_of(node: ir.Node) -> Mask | None:
    """A product with a cast boolean of the same shape, as every ReLU's gradient is."""
    if node.op_type != "Mul":
        return None
    for value, factor in (node.inputs, reversed(node.inputs)):
        cast = factor.producer() if factor is not None else None
        if value is None or factor is None or cast is None or cast.op_type != "Cast":
            continue
        condition = cast.inputs[0]
        if condition is not None and condition.dtype == ir.DataType.BOOL and factor.shape == value.shape:
            return Mask(value, condition)
    return None


class _CodeGroups:
    """The values that can be held as codes, in groups of one grid each (union–find)."""

    def __init__(self, nodes: Sequence[ir.Node], constant: set[ir.Value]) -> None:
        self._constant = constant
        self.computed: list[ir.Node] = []
        self.fused: dict[ir.Value, ir.Value] = {}
        self.bounds: dict[ir.Value, float] = {}
        self.values: dict[ir.Value, None] = {}  # a set that keeps its order
        self._parents: dict[ir.Value, ir.Value] = {}
        self._moved: set[ir.Value] = set()
        for node in nodes:
            self._visit(node)

    def _visit(self, node: ir.Node) -> None:
        inputs = [value for value in node.inputs if value is not None and self._is_activation(value)]
        if self._computes(node, inputs):
            self.computed.append(node)
            self.values.update(dict.fromkeys(inputs))
            output = node.outputs[0]
            if (saturated := _saturation(node)) is not None:
                self.fused[output] = output = saturated.outputs[0]
                if saturated.op_type == "Clip":
                    self.bounds[output] = _number(saturated, 2)
            self.values[output] = None
            return
        mask = mask_of(node)
        moved = [mask.value] if mask else inputs if node.op_type in MOVING_CODES else []
        if moved and all(value in self.values for value in moved):
            for output in node.outputs:
                self.values[output] = None
                self._moved.add(output)
                for value in moved:
                    self._join(value, output)

    def _is_activation(self, value: ir.Value) -> bool:
        return value not in self._constant and value.dtype == ir.DataType.FLOAT

    def _computes(self, node: ir.Node, inputs: Sequence[ir.Value]) -> bool:
        if node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type in WEIGHTED:
            return is_plain_linear(node, self._constant)
        if node.op_type == "Add":
            equal = len(inputs) == 2 and inputs[0].shape == inputs[1].shape
            return equal and any(value in self.values for value in inputs)
        return node.op_type in AVERAGES and any(value in self.values for value in inputs)

    def _join(self, a: ir.Value, b: ir.Value) -> None:
        a, b = self.root(a), self.root(b)
        if a is not b:
            self._parents[b] = a

    def root(self, value: ir.Value) -> ir.Value:
        """The value that stands for a group."""
        while value in self._parents:
            value = self._parents[value]
        return value

    def sources(self) -> dict[ir.Value, list[ir.Value]]:
        """By group, the values that its range is that of: all but what was only moved, or masked."""
        found: dict[ir.Value, list[ir.Value]] = {}
        for value in self.values:
            if value not in self._moved:
                found.setdefault(self.root(value), []).append(value)
        return found


def is_plain_linear(node: ir.Node, constant: set[ir.Value]) -> bool:
    """Whether a layer has constant weights and an integer kernel, and is not that of the logits."""
    if node.inputs[0] in constant or any(v not in constant for v in node.inputs[1:] if v is not None):
        return False
    if node.op_type == "Conv":
        return True
    x, weight = node.inputs[0], node.inputs[1]
    ranks = [
        len(value.shape) if value is not None and value.shape is not None else 0 for value in (x, weight)
    ]
    factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    transposed = node.attributes.get_int("transA", 0)
    return ranks == [2, 2] and factors == [1.0, 1.0] and not transposed and not _gives_logits(node)


def _gives_logits(node: ir.Node) -> bool:
    output = node.outputs[0]
    return output.is_graph_output() or any(
        use.node.op_type == "Add" and use.node.outputs[0].is_graph_output() for use in output.uses()
    )


def _saturation(node: ir.Node) -> ir.Node | None:
    """The ReLU, or Clip from 0, that alone reads a node's output."""
    output = node.outputs[0]
    readers = [use.node for use in output.uses()]
    if len(readers) != 1 or output.is_graph_output():
        return None
    (reader,) = readers
    if reader.op_type == "Clip":
        return reader if _number(reader, 1) == 0 and _number(reader, 2) > 0 else None
    return reader if reader.op_type == "Relu" else None


def _number(node: ir.Node, index: int) -> float:
    """A constant bound of a Clip; NaN if it is absent or computed."""
    array = constant_array(node.inputs[index]) if index < len(node.inputs) else None
    return float(array) if array is not None and array.size == 1 else math.nan
