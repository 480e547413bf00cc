"""A float32 graph retyped to float16 throughout, between float32 inputs and outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
_HIGHEST = float(np.finfo(np.float16).max)
_LOWEST = float(np.finfo(np.float16).smallest_subnormal)


def in_half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every float32 weight, constant, value and cast becomes a float16 one; nothing else changes.

    Args:
        model: Changed in place, so that large weights are held once.

    Returns:
        The same model. Its inputs and outputs stay float32 and are cast. Numbers beyond
        float16 become its largest, those that would become zero its smallest.
    """
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(_narrowed(numpy_helper.to_array(tensor)), tensor.name))
    for value in graph.value_info:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    names = {value.name: f"{value.name}/half" for value in [*graph.input, *graph.output]}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    nodes = [
        *(_cast(value.name, names[value.name], TensorProto.FLOAT16) for value in graph.input),
        *graph.node,
        *(_cast(names[value.name], value.name, TensorProto.FLOAT) for value in graph.output),
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"cast/{target}", to=to)


def _narrowed(array: Array) -> Array:
    narrow = np.clip(array, -_HIGHEST, _HIGHEST).astype(np.float16)
    vanished = (narrow == 0) & (array != 0)
    return np.where(vanished, np.copysign(_LOWEST, array), narrow).astype(np.float16)
