"""Half precision as float32: a defended graph is compared in float32, and lowered afterwards if asked for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graph.values import HALF

_FLOAT = ir.TensorType(ir.DataType.FLOAT)


def widen(graph: ir.Graph) -> bool:
    """Turn every value in half precision into float32, in place; whether there was one.

    Args:
        graph: Without control flow; its constants are initializers.
    """
    values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    narrow = [value for value in values if value.dtype in HALF]
    for value in narrow:
        if value.const_value is not None:
            array = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
        value.type = _FLOAT
    for node in graph:
        for name in ("to", "dtype"):
            if node.attributes.get_int(name, 0) in [int(kind) for kind in HALF]:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
        filled = node.attributes.get("value")  # of ConstantOfShape
        if filled is not None and isinstance(filled.value, ir.TensorProtocol) and filled.value.dtype in HALF:
            node.attributes["value"] = ir.AttrTensor(
                "value", ir.tensor(filled.value.numpy().astype(np.float32))
            )
    return bool(narrow)
