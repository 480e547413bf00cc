"""Widen the groups of a convolution to whole blocks of onnxruntime's NCHWc layout.

1. Conv whose groups have w input and w output channels, w a divisor of a block, becomes Conv with groups of
   one block, if its channels are whole blocks: the old weights on the diagonal of the new, zeros elsewhere.

Most products are then with zeros, and yet it takes half the time: narrower groups are computed one by one,
outside the layout (benchmarks/lowerings.py). Depthwise convolutions have a form of their own and are left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from ...graph.initializers import initializer
from ...graph.nodes import attribute
from ...graph.values import constant_array
from .layout import BLOCK, could_be_nchwc


class NchwcGroupsPass(ir.passes.InPlacePass):
    """See the module; for the target ``cpu``. The graph has shapes, and weights as initializers."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place."""
        rewritten = [node for node in model.graph if _rewrite(model.graph, node)]
        return ir.passes.PassResult(model, modified=bool(rewritten))


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    if node.op_type != "Conv" or node.domain != "":
        return False
    kernel, group = node.inputs[1], attribute(node, "group", 1)
    weight = constant_array(kernel)
    if kernel is None or weight is None or group == 1:
        return False
    channels, width = weight.shape[:2]
    if width == 1 or BLOCK % width or width == BLOCK or channels != group * width:
        return False
    if not could_be_nchwc(node.outputs[0]):
        return False
    wide = initializer(graph, f"{kernel.name}/blocks", _on_the_diagonal(weight))
    node.replace_input_with(1, wide)
    node.attributes["group"] = ir.AttrInt64("group", channels // BLOCK)
    return True


def _on_the_diagonal(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(C, w, *kernel) → (C, BLOCK, *kernel)."""
    channels, width, *kernel = weight.shape
    groups = BLOCK // width
    wide = np.zeros((channels // BLOCK, groups, width, groups, width, *kernel), dtype=weight.dtype)
    narrow = weight.reshape(channels // BLOCK, groups, width, width, *kernel)
    for i in range(groups):
        wide[:, i, :, i] = narrow[:, i]
    return wide.reshape(channels, BLOCK, *kernel)
