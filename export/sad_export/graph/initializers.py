"""Constants of a graph that is being rewritten."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir


def initializer(graph: ir.Graph, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    """The initializer of a name; the numbers are stored when it is first asked for.

    Args:
        graph: Where it goes.
        name: Of the value. Whoever asks for the same name means the same numbers.
        array: The numbers, in the type that they are to have.
    """
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        graph.register_initializer(value)
    return graph.initializers[name]
