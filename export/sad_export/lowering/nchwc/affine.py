"""Write an affine of each channel as a depthwise convolution, which onnxruntime's NCHWc layout holds.

1. x · a + b, with a blocked x and constants a and b of one number a channel, becomes Conv(x, a, b), 1×1 and
   depthwise. The product may have no other reader.

BatchNorm in front of its convolution, as in a DenseNet, cannot be folded and is left as this affine.
onnxruntime takes the product alone to be such a convolution, and leaves the layout for the sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from ...graph.initializers import initializer
from ...graph.nodes import sole_reader
from ...graph.values import constant_array
from .layout import Layout


class NchwcAffinePass(ir.passes.InPlacePass):
    """See the module; for the target ``cpu``. The graph is in topological order and has shapes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place."""
        layout = Layout()
        rewritten = [node for node in list(model.graph) if _rewrite(model.graph, node, layout)]
        return ir.passes.PassResult(model, modified=bool(rewritten))


def _rewrite(graph: ir.Graph, node: ir.Node, layout: Layout) -> bool:
    """Make one Add the convolution; what it added to is left without a reader."""
    total = node.outputs[0]
    product, offset = _value_and_constant(node, "Add", total)
    factors = product.producer() if product is not None else None
    if product is None or offset is None or factors is None or sole_reader(product) is not node:
        return False
    x, scale = _value_and_constant(factors, "Mul", total)
    if x is None or scale is None or not layout.holds(x):
        return False
    channels = len(scale)
    weight = initializer(graph, f"{factors.name}/depthwise", scale.reshape(channels, 1, 1, 1))
    bias = initializer(graph, f"{node.name}/bias", offset)
    node.op_type = "Conv"
    node.resize_inputs(3)
    for place, value in enumerate((x, weight, bias)):
        node.replace_input_with(place, value)
    for attribute in ir.convenience.convert_attributes({"kernel_shape": [1, 1], "group": channels}):
        node.attributes.add(attribute)
    graph.remove(factors, safe=True)
    return True


def _value_and_constant(
    node: ir.Node, op_type: str, like: ir.Value
) -> tuple[ir.Value, np.ndarray[Any, Any]] | tuple[None, None]:
    """The operands of such a node: a value of the shape of ``like``, and (C,) numbers for its channels."""
    if node.op_type != op_type or node.domain != "" or like.shape is None:
        return None, None
    for value, other in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        array = constant_array(other)
        if value is None or array is None or value.shape != like.shape or len(like.shape) != 4:
            continue
        channels = like.shape[1]
        if array.shape in ((channels, 1, 1), (1, channels, 1, 1)):
            return value, array.reshape(-1)
    return None, None
