"""Rewrite a float32 two-pass graph to the types of a plan, or emulate them in float32.

1. A node computes in its planned type: its float inputs are cast to it where they are not in it already, one
   Cast a value and type, and its float outputs are in it.
2. A weight is stored once, in the type that its readers want. Where they want several, it stays float32 and
   is cast in the graph, which a runtime folds when it loads the model.
3. The image and all outputs stay float32.

The emulation has the same plan and no other type than float32: every value that would be in a lower type
is cast there and back. It says what the graph computes where onnxruntime's CPU would keep values between two
fp16 nodes in float32, and where it has no kernels at all, as for bf16.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from sad_runtime.choices import Precision

from ..graph.operators import EXACT, FLOAT32_INPUTS_FROM
from .plan import Plan
from .variant import DTYPES

_NUMPY: dict[Precision, Any] = {
    Precision.FP32: np.float32,
    Precision.FP16: np.float16,
    Precision.BF16: ml_dtypes.bfloat16,
}


class LowerPrecisionPass(ir.passes.InPlacePass):
    """See the module.

    Args:
        plan: The type of every node of the graph that the pass is called on.
        emulate: Write the emulation instead of the typed graph.
    """

    def __init__(self, plan: Plan, *, emulate: bool = False) -> None:
        super().__init__()
        self._plan = plan
        self._emulates = emulate
        self._types: dict[ir.Value, Precision] = {}
        self._converted: dict[tuple[ir.Value, Precision], ir.Value] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place."""
        graph = model.graph
        nodes = list(graph)
        reads = [
            (node, i, value, self._wanted(node, i))
            for node in nodes
            for i, value in enumerate(node.inputs)
            if value is not None and value.dtype == ir.DataType.FLOAT
        ]
        outputs = {
            value: self._plan.precisions[node]
            for node in nodes
            for value in node.outputs
            if value.dtype == ir.DataType.FLOAT
        }
        self._store_initializers(graph, [(value, wanted) for _, _, value, wanted in reads])
        self._types.update(outputs)
        for node, i, value, wanted in reads:
            node.replace_input_with(i, self._as(graph, value, wanted))
        for value, precision in outputs.items():
            if precision is not Precision.FP32:
                (self._round if self._emulates else self._lower)(graph, value, precision)
        graph.sort()
        return ir.passes.PassResult(model, modified=bool(self._types))

    def _wanted(self, node: ir.Node, i: int) -> Precision:
        """The type that a node reads its float input i in."""
        keeps_float32 = i >= FLOAT32_INPUTS_FROM.get(node.op_type, len(node.inputs))
        return Precision.FP32 if keeps_float32 else self._plan.precisions[node]

    def _store_initializers(self, graph: ir.Graph, reads: list[tuple[ir.Value, Precision]]) -> None:
        readers: dict[ir.Value, set[Precision]] = {}
        for value, wanted in reads:
            readers.setdefault(value, set()).add(wanted)
        for value in graph.initializers.values():
            if readers.get(value, {Precision.FP32}) == {Precision.FP32} or len(readers[value]) > 1:
                continue
            (precision,) = readers[value]
            assert value.const_value is not None
            array = value.const_value.numpy().astype(_NUMPY[precision])
            if self._emulates:
                array = array.astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
            value.type = ir.TensorType(value.const_value.dtype)
            self._types[value] = precision

    def _as(self, graph: ir.Graph, value: ir.Value, wanted: Precision) -> ir.Value:
        """``value`` in a type; in the emulation, rounded to it."""
        have = self._types.get(value, Precision.FP32)
        # Float32 holds what was rounded before.
        if have is wanted or (self._emulates and wanted is Precision.FP32):
            return value
        if (value, wanted) not in self._converted:
            converted = _cast(graph, value, wanted)
            self._converted[value, wanted] = (
                _cast(graph, converted, Precision.FP32) if self._emulates else converted
            )
        return self._converted[value, wanted]

    def _lower(self, graph: ir.Graph, value: ir.Value, precision: Precision) -> None:
        """Give an output its type; what leaves the graph is cast back and keeps its name."""
        node = value.producer()
        assert node is not None
        value.type = ir.TensorType(DTYPES[precision])
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", int(DTYPES[precision]))
        for i, output in enumerate(graph.outputs):
            if output is value:
                name = value.name
                leaving = self._as(graph, value, Precision.FP32)
                value.name, leaving.name = f"{name}/{precision}", name
                graph.outputs[i] = leaving

    def _round(self, graph: ir.Graph, value: ir.Value, precision: Precision) -> None:
        """Put a rounding behind an output, before everything that reads it."""
        node = value.producer()
        assert node is not None
        if node.op_type in EXACT or (node.op_type == "Cast" and _is_boolean(node.inputs[0])):
            return
        readers = list(value.uses())
        rounded = _cast(graph, _cast(graph, value, precision), Precision.FP32)
        for reader in readers:
            reader.node.replace_input_with(reader.idx, rounded)
        for i, output in enumerate(graph.outputs):
            if output is value:
                value.name, rounded.name = f"{value.name}/exact", value.name
                graph.outputs[i] = rounded


def _cast(graph: ir.Graph, value: ir.Value, precision: Precision) -> ir.Value:
    name = f"{value.name}/{precision}"
    output = ir.Value(name=name, shape=value.shape, type=ir.TensorType(DTYPES[precision]))
    attributes = [ir.AttrInt64("to", int(DTYPES[precision]))]
    graph.append(ir.Node("", "Cast", [value], attributes=attributes, outputs=[output], name=name))
    return output


def _is_boolean(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.BOOL
