"""Keep what is broadcast over an image in onnxruntime's NCHWc layout.

1. ReduceMean over height and width of a blocked value becomes GlobalAveragePool.
2. x · g, of a blocked (N, C, H, W) and an (N, C, 1, 1), becomes x · Resize(g), of equal shapes.

The two halves of squeeze-and-excitation: as they are exported, each takes the whole activation out of the
layout, and the next convolution puts the product back in.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...graph.initializers import initializer
from ...graph.nodes import attribute
from ...graph.values import constant_array
from .layout import NEAREST, Layout


class NchwcBroadcastPass(ir.passes.InPlacePass):
    """See the module; for the target ``cpu``. The graph is in topological order and has shapes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place."""
        layout = Layout()
        rewritten = [
            node
            for node in list(model.graph)
            if node.domain == "" and (_averages(node, layout) or _scales(model.graph, node, layout))
        ]
        return ir.passes.PassResult(model, modified=bool(rewritten))


def _averages(node: ir.Node, layout: Layout) -> bool:
    """Rule 1."""
    if node.op_type != "ReduceMean" or not attribute(node, "keepdims", 1):
        return False
    axes = constant_array(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes", None)
    x = node.inputs[0]
    if axes is None or x is None or not layout.holds(x) or sorted(int(axis) % 4 for axis in axes) != [2, 3]:
        return False
    node.op_type = "GlobalAveragePool"
    node.resize_inputs(1)
    node.attributes.clear()
    return True


def _scales(graph: ir.Graph, node: ir.Node, layout: Layout) -> bool:
    """Rule 2."""
    if node.op_type != "Mul":
        return False
    for place, (x, g) in enumerate((node.inputs, node.inputs[::-1])):
        if x is None or g is None or x.shape is None or g.shape is None or not layout.holds(x):
            continue
        height, width = x.shape[2:]
        if not isinstance(height, int) or not isinstance(width, int) or g.shape[1:] != (x.shape[1], 1, 1):
            continue
        if g.shape[0] != x.shape[0] or height == width == 1:
            continue
        times = np.array([1, 1, height, width], dtype=np.float32)
        scales = initializer(graph, f"times_{height}x{width}", times)
        repeated = ir.Value(name=f"{node.name}/repeated", type=g.type, shape=x.shape)
        attributes = ir.convenience.convert_attributes(NEAREST)
        repeat = ir.Node("", "Resize", [g, None, scales], attributes, outputs=[repeated], name=repeated.name)
        repeat.meta.update(node.meta)
        graph.insert_before(node, repeat)
        node.replace_input_with(1 - place, repeated)
        return True
    return False
