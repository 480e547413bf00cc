"""Classifiers whose last weight is changed in the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

Array = np.ndarray[Any, Any]


def with_last_weight(forward: onnx.ModelProto, change: Callable[[Array], Array]) -> onnx.ModelProto:
    """A copy of a classifier that ends in a Gemm, with another weight and no bias in it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(forward)
    (last,) = (node for node in copy.graph.node if node.op_type == "Gemm")
    for tensor in copy.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name == last.input[1]:
            tensor.CopyFrom(numpy_helper.from_array(change(array), tensor.name))
        elif tensor.name == last.input[2]:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(array), tensor.name))
    return copy
