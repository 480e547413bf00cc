"""Replace operators without a gradient rule by the body that the ONNX standard defines them by.

1. An operator with a rule, or without a gradient, is left.
2. A body with control flow or sequences is left out: no rule could take it either.
3. A body may depend on attributes and input types; each node gets its own.
4. Only what is computed from a graph input is expanded: nothing else is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

_REFUSED = frozenset(("If", "Loop", "Scan", "SequenceMap", "SequenceInsert", "SequenceAt", "SplitToSequence"))


class ExpandFunctionsPass(ir.passes.InPlacePass):
    """See the module; values have types.

    Args:
        keeps: Whether a node can be differentiated as it is.
    """

    def __init__(self, keeps: Callable[[ir.Node], bool]) -> None:
        super().__init__()
        self.keeps = keeps

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Expand in place."""
        reached = set(model.graph.inputs)
        expanded = False
        for index, node in enumerate(list(model.graph)):
            if not any(value in reached for value in node.inputs):
                continue
            reached.update(node.outputs)
            body = None if node.domain or self.keeps(node) else _body(node, model.opset_imports)
            if body is None:
                continue
            _state_defaults(node, model.opset_imports.get("", 1))
            node.overload = f"{index}"
            function = ir.serde.deserialize_function(body)
            function.overload = node.overload
            # The body is written for the oldest opset that it is right for, so it is also right for ours.
            function.opset_imports[""] = model.opset_imports[""]
            model.functions[function.identifier()] = function
            expanded = True
        if expanded:
            common_passes.InlinePass()(model)
            common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        return ir.passes.PassResult(model, modified=expanded)


def _body(node: ir.Node, opsets: dict[str, int]) -> onnx.FunctionProto | None:
    version = opsets.get("", 1)
    # onnx ships no types for these members of a schema.
    schema: Any = _schema(node.op_type, version)
    if schema is None:
        return None
    if schema.has_function:
        versions = [v for v in schema.function_opset_versions if v <= version]
        text = schema.get_function_with_opset_version(max(versions)) if versions else b""
    elif schema.has_context_dependent_function:
        # Asked about anything but tensors, the library crashes.
        kinds = [_type(value) for value in node.inputs]
        graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        if any(kind is None for kind in kinds) or any(a.type in graphs for a in node.attributes.values()):
            return None
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= version]
        if not versions:
            return None
        proto = ir.to_proto(node).SerializeToString()
        text = schema.get_context_dependent_function_with_opset_version(max(versions), proto, kinds)
    else:
        return None
    body = onnx.FunctionProto.FromString(text)
    # A body for a node without some optional output declares it all the same.
    del body.output[len(node.outputs) :]
    made = {name for inner in body.node for name in inner.output}
    whole = body.node and all(name in made for name in body.output)
    return body if whole and not any(inner.op_type in _REFUSED for inner in body.node) else None


def _state_defaults(node: ir.Node, version: int) -> None:
    """Write out the attributes that are left to their defaults: a body reads them from the node."""
    schema = _schema(node.op_type, version)
    for name, attribute in () if schema is None else schema.attributes.items():
        if name not in node.attributes and attribute.default_value.type:
            node.attributes[name] = ir.serde.deserialize_attribute(attribute.default_value)


def _schema(op_type: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None


def _type(value: ir.Value | None) -> bytes | None:
    """The serialised type of a tensor, empty for an absent input; ``None`` for anything else."""
    if value is None:
        return b""
    if not isinstance(value.type, ir.TensorType) or value.shape is None:
        return None
    dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    kind: bytes = onnx.helper.make_tensor_type_proto(int(value.type.dtype), dims).SerializeToString()
    return kind
