"""Give every value its shape, and fold what does not depend on the image.

The walk carries two numbers for a dynamic batch side by side. What comes out the same for both does not
depend on the batch: this decides dimensions, and it evaluates the Shape → Gather → Concat → Reshape chains
that exporters leave behind.

1. A dimension that is the same for both batches is static; one in proportion to the batch is its name, or
   ``name*k``; any other stays open.
2. A value computed from constants alone, or from shapes but not from the batch, becomes an initializer.
   DequantizeLinear is left, because it is how quantised weights are stored, and so is what would make
   the file larger.
3. The computed target of a Reshape with one dynamic dimension becomes a constant with −1 for it.
4. A node of an unknown operator, or one whose inference fails, keeps the shapes that the file states.
5. Pools whose windows inference counts otherwise than runtimes do are written out (``window_sizes``).
6. CastLike reads nothing but the type of its second input, and becomes a Cast; EyeLike nothing but a shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from ..graph.operators import RANDOM
from .window_sizes import WINDOWED, write_out_windows

Array = np.ndarray[Any, Any]

# Unequal, and unlikely to be the length of anything else that is divided or compared.
_BATCHES = (22, 26)
_NEVER_FOLDED = RANDOM | {"DequantizeLinear", "Dropout"}
# Numbers that shape inference reads: shapes, axes, pads, scales.
_SHAPE_SIZED = 256
# A folded value may be this large whatever it was computed from.
_SMALL_BYTES = 2**16


@dataclasses.dataclass(frozen=True)
class _Known:
    """What is known of a value at each of the two batches: its type, and its numbers if constant."""

    types: tuple[onnx.TypeProto, onnx.TypeProto]
    arrays: tuple[Array, Array] | None = None

    @property
    def constant(self) -> Array | None:
        """The numbers, if they are the same for both batches."""
        if self.arrays is None or self.arrays[0] is self.arrays[1]:
            return None if self.arrays is None else self.arrays[0]
        first, second = self.arrays
        return first if first.shape == second.shape and np.array_equal(first, second) else None


class ShapesPass(ir.passes.InPlacePass):
    """See the module; the nodes are in topological order, and named."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Infer and fold in place."""
        return ir.passes.PassResult(model, modified=_Walk(model).run())


class _Walk:
    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.opsets = [onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items()]
        self.versions = dict(model.opset_imports)
        self.known: dict[ir.Value, _Known] = {}
        self.batch = "N"

    def run(self) -> bool:
        for value in self.graph.inputs:
            self._enter(value)
        outputs = set(self.graph.outputs)
        modified = False
        for node in list(self.graph):
            modified |= self._write_out_windows(node) | self._write_out_cast(node)
            self._infer(node)
            self._evaluate(node)
            for value in node.outputs:
                modified |= self._write_shape(value)
            if len(node.outputs) == 1 and node.outputs[0] not in outputs and self._fold(node):
                modified = True
            elif node.op_type == "Reshape" and node.domain == "":
                modified |= self._fold_target(node)
        return modified

    def _enter(self, value: ir.Value) -> None:
        """The input of the graph: a dynamic first dimension is the batch."""
        if value.shape is None or value.dtype is None:
            return
        dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
        if dims and not isinstance(dims[0], int):
            self.batch = dims[0] or self.batch
            value.shape = ir.Shape([self.batch, *dims[1:]])
            self.known[value] = _Known(
                (_type(value.dtype, [_BATCHES[0], *dims[1:]]), _type(value.dtype, [_BATCHES[1], *dims[1:]]))
            )
        else:
            self.known[value] = _Known((_type(value.dtype, dims),) * 2)

    def _of(self, value: ir.Value) -> _Known | None:
        if value not in self.known and value.const_value is not None:
            tensor = value.const_value
            array = tensor.numpy()
            kind = _type(tensor.dtype, array.shape)
            self.known[value] = _Known((kind, kind), (array, array))
        return self.known.get(value)

    def _write_out_windows(self, node: ir.Node) -> bool:
        """Case 5."""
        if node.op_type not in WINDOWED:
            return False
        sizes, weight = (self._spatial(node, i) for i in (0, 1))
        kernel = list(node.attributes.get_ints("kernel_shape", weight))
        return bool(sizes and kernel) and write_out_windows(node, sizes, kernel)

    def _write_out_cast(self, node: ir.Node) -> bool:
        """Case 6."""
        like = self._of(node.inputs[1]) if node.op_type == "CastLike" and node.inputs[1] is not None else None
        if like is None or not like.types[0].HasField("tensor_type"):
            return False
        node.op_type = "Cast"
        node.attributes["to"] = ir.AttrInt64("to", like.types[0].tensor_type.elem_type)
        node.attributes.pop("saturate", None)
        node.resize_inputs(1)
        return True

    def _spatial(self, node: ir.Node, i: int) -> list[int]:
        """H and W of an input; empty if they are not known."""
        value = node.inputs[i] if i < len(node.inputs) else None
        known = None if value is None else self._of(value)
        dims = (None if known is None else _dims(known.types[0])) or []
        found = [n for n in dims[2:] if isinstance(n, int)]
        return found if len(found) == len(dims) - 2 else []

    def _infer(self, node: ir.Node) -> None:
        inputs = [self._of(value) for value in node.inputs if value is not None]
        try:
            schema = onnx.defs.get_schema(node.op_type, self.versions.get(node.domain, 1), node.domain)
        except onnx.defs.SchemaError:
            schema = None
        if schema is None or any(known is None for known in inputs):
            self._take_stated(node)
            return
        proto = ir.to_proto(node)
        varies = any(
            known.types[0] is not known.types[1]
            or (known.arrays is not None and known.arrays[0] is not known.arrays[1])
            for known in inputs
            if known is not None
        )
        first = self._inferred(schema, proto, node, 0)
        second = self._inferred(schema, proto, node, 1) if varies else first
        for value in node.outputs:
            if value.name and value.name in first and value.name in second:
                self.known[value] = _Known((first[value.name], second[value.name]))
            elif value.name:
                self._take_stated(node)

    def _inferred(
        self, schema: onnx.defs.OpSchema, proto: onnx.NodeProto, node: ir.Node, at: int
    ) -> dict[str, onnx.TypeProto]:
        types, data = {}, {}
        for value in node.inputs:
            known = None if value is None else self._of(value)
            if value is None or known is None:
                continue
            types[str(value.name)] = known.types[at]
            if known.arrays is not None and known.arrays[at].size <= _SHAPE_SIZED:
                data[str(value.name)] = onnx.numpy_helper.from_array(known.arrays[at])
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=self.opsets
            )
            if any(name not in found or _dims(found[name]) is None for name in proto.output if name):
                found |= self._inferred_from_body(proto, types, data)
        except onnx.shape_inference.InferenceError:
            return {}  # case 4
        return found

    def _inferred_from_body(
        self, proto: onnx.NodeProto, types: dict[str, onnx.TypeProto], data: dict[str, onnx.TensorProto]
    ) -> dict[str, onnx.TypeProto]:
        """An operator that the standard defines by a function body has shapes in a whole model only."""
        if proto.op_type == "GroupNormalization":  # not even there
            return {proto.output[0]: types[proto.input[0]]}
        for name, tensor in data.items():
            tensor.name = name
        graph = onnx.helper.make_graph(
            [proto],
            "node",
            [onnx.helper.make_value_info(name, kind) for name, kind in types.items()],
            [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in proto.output if name],
            list(data.values()),
        )
        model = onnx.helper.make_model(graph, opset_imports=self.opsets)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        return {value.name: value.type for value in inferred.graph.output if _dims(value.type) is not None}

    def _take_stated(self, node: ir.Node) -> None:
        """What the file says of the outputs; a named dimension stays a name."""
        for value in node.outputs:
            if value.shape is None or value.dtype is None or value in self.known:
                continue
            dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
            kinds = [
                _type(value.dtype, [batch if dim == self.batch else dim for dim in dims])
                for batch in _BATCHES
            ]
            self.known[value] = _Known((kinds[0], kinds[1] if self.batch in dims else kinds[0]))

    def _evaluate(self, node: ir.Node) -> None:
        """The numbers of the output, where those of all inputs are known."""
        if len(node.outputs) != 1 or node.op_type in _NEVER_FOLDED or node.domain not in ("", "ai.onnx"):
            return
        (output,) = node.outputs
        kind = self.known.get(output)
        inputs = [self._of(value) for value in node.inputs if value is not None]
        if kind is None:
            return
        if node.op_type in ("Shape", "Size", "EyeLike"):
            dims = [_dims(kind) for kind in inputs[0].types] if inputs[0] is not None else [None]
            if any(each is None or not all(isinstance(n, int) for n in each) for each in dims):
                return
            shapes = [np.array(each, dtype=np.int64) for each in dims]
            start = node.attributes.get_int("start", 0)
            end = node.attributes.get_int("end", len(shapes[0]))
            if node.op_type == "Shape":
                arrays = tuple(shape[start:end] for shape in shapes)
            elif node.op_type == "Size":
                arrays = tuple(np.array(shape.prod()) for shape in shapes)
            else:
                offset = node.attributes.get_int("k", 0)
                dtype = ir.DataType(kind.types[0].tensor_type.elem_type).numpy()
                arrays = tuple(np.eye(int(n), int(m), offset, dtype=dtype) for n, m in shapes)
        else:
            known = [k.arrays for k in inputs if k is not None and k.arrays is not None]
            if len(known) < len(inputs) or not _worth_evaluating(kind, known):
                return
            feeds = [
                {
                    str(v.name): k[at]
                    for v, k in zip((v for v in node.inputs if v is not None), known, strict=True)
                }
                for at in (0, 1)
            ]
            first = self._run(node, feeds[0])
            same = all(k[0] is k[1] for k in known)
            second = first if same else self._run(node, feeds[1])
            if first is None or second is None:
                return
            arrays = (first, second)
        first, second = arrays
        self.known[output] = _Known(kind.types, (first, first if np.array_equal(first, second) else second))

    def _run(self, node: ir.Node, feeds: dict[str, Array]) -> Array | None:
        """One node in ONNX's reference evaluator; ``None`` where that does not implement it."""
        output = str(node.outputs[0].name)
        graph = onnx.helper.make_graph(
            [ir.to_proto(node)],
            "fold",
            [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in feeds],
            [onnx.helper.make_value_info(output, onnx.TypeProto())],
        )
        model = onnx.helper.make_model(graph, opset_imports=self.opsets)
        try:
            (result,) = ReferenceEvaluator(model).run(None, feeds)
        except Exception:  # it raises whatever its Python raises; an unfolded node is still right
            return None
        return result if isinstance(result, np.ndarray) else None

    def _write_shape(self, value: ir.Value) -> bool:
        known = self.known.get(value)
        if known is None or not known.types[0].HasField("tensor_type"):
            return False
        value.type = ir.TensorType(ir.DataType(known.types[0].tensor_type.elem_type))
        first, second = (_dims(kind) for kind in known.types)
        if first is None or second is None or len(first) != len(second):
            return False
        stated = list(value.shape) if value.shape is not None and len(value.shape) == len(first) else None
        dims = [self._dimension(p, q) for p, q in zip(first, second, strict=True)]
        if stated is not None:
            dims = [s if d is None and isinstance(s, int) else d for d, s in zip(dims, stated, strict=True)]
        before = value.shape
        value.shape = ir.Shape(dims)
        return before != value.shape

    def _dimension(self, first: int | str | None, second: int | str | None) -> int | str | None:
        """Case 1."""
        if first == second:
            return first
        if not isinstance(first, int) or not isinstance(second, int):
            return None
        k, rest = divmod(first, _BATCHES[0])
        if rest or second != k * _BATCHES[1]:
            return None
        return self.batch if k == 1 else f"{self.batch}*{k}"

    def _fold(self, node: ir.Node) -> bool:
        """Case 2."""
        (output,) = node.outputs
        known = self.known.get(output)
        array = None if known is None else known.constant
        if array is None:
            return False
        self._replace(output, array)
        for i in range(len(node.inputs)):
            node.replace_input_with(i, None)  # or its constants would count as used
        self.graph.remove(node, safe=False)
        return True

    def _fold_target(self, node: ir.Node) -> bool:
        """Case 3."""
        target, output = node.inputs[1], node.outputs[0]
        if target is None or target.const_value is not None or output.shape is None:
            return False
        dims = [dim if isinstance(dim, int) else -1 for dim in output.shape]
        if dims.count(-1) > 1 or 0 in dims:
            return False
        array = np.array(dims, dtype=np.int64)
        value = self._constant(f"{output.name}/shape", array)
        node.replace_input_with(1, value)
        return True

    def _replace(self, value: ir.Value, array: Array) -> None:
        name = str(value.name)
        value.name = f"{name}/folded"
        constant = self._constant(name, array)
        ir.convenience.replace_all_uses_with(value, constant)

    def _constant(self, name: str, array: Array) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value


def _worth_evaluating(kind: _Known, inputs: Sequence[tuple[Array, Array]]) -> bool:
    """Constants, if the result is no larger than what it is made of; of the batch, only shapes."""
    dims = _dims(kind.types[0])
    if dims is None or any(not isinstance(n, int) for n in dims):
        return False
    dtype = ir.DataType(kind.types[0].tensor_type.elem_type)
    size = int(np.prod([n for n in dims if isinstance(n, int)]))
    if all(first is second for first, second in inputs):
        return size * dtype.itemsize <= max(_SMALL_BYTES, *(first.nbytes for first, _ in inputs), 0)
    return size <= _SHAPE_SIZED and not dtype.is_floating_point()


def _type(dtype: ir.DataType, dims: Sequence[int | str | None]) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(int(dtype), list(dims))


def _dims(kind: onnx.TypeProto) -> list[int | str | None] | None:
    """The dimensions; ``None`` for an unknown rank."""
    if not kind.tensor_type.HasField("shape"):
        return None
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
        for dim in kind.tensor_type.shape.dim
    ]
