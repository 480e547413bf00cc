"""Write a strided convolution of few channels on blocks of its input, as the first layer of most networks is.

1. Conv(x, W) with stride s in both directions, no dilation, no groups and C·s² ≤ 16 channels becomes
   Conv(SpaceToDepth(x, s), W′) at stride 1, where W′ is W with its taps put in the same blocks.

The sums are the same products in another order. An integer convolution gathers one contiguous run of bytes
a tap, here s times as long, and the gradient is one convolution for all phases instead of one for each.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from ...graph.initializers import initializer
from ...graph.nodes import attribute
from ...graph.values import constant_array

_MOST_CHANNELS = 16


@dataclasses.dataclass(frozen=True)
class _Axis:
    """One direction of the windows, in blocks."""

    taps_before: int  # zero taps in front of the kernel, so that it begins with a block
    blocks: int
    begin: int  # padding, in blocks
    end: int


class StridedStemPass(ir.passes.InPlacePass):
    """See the module; the graph has shapes, and weights as initializers."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place."""
        found = [node for node in model.graph if node.op_type == "Conv" and node.domain == ""]
        rewritten = [node for node in found if _rewrite(model.graph, node)]
        return ir.passes.PassResult(model, modified=bool(rewritten))


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    x, y, weight = node.inputs[0], node.outputs[0], node.inputs[1]
    array = constant_array(weight)
    if x is None or weight is None or array is None or x.shape is None or y.shape is None or array.ndim != 4:
        return False
    strides, pads = attribute(node, "strides", (1, 1)), attribute(node, "pads", (0, 0, 0, 0))
    stride = int(strides[0])
    sizes = [n for n in x.shape[2:] if isinstance(n, int)]
    outs = [n for n in y.shape[2:] if isinstance(n, int)]
    channels = array.shape[1]
    if (
        stride == 1
        or strides[1] != stride
        or channels * stride**2 > _MOST_CHANNELS
        or attribute(node, "group", 1) != 1
        or set(attribute(node, "dilations", (1,))) != {1}
        or attribute(node, "auto_pad", "NOTSET") != "NOTSET"
        or len(sizes) != 2
        or len(outs) != 2
        or any(n % stride for n in sizes)
    ):
        return False
    axes = [
        _axis(size, out, kernel, pad, stride)
        for size, out, kernel, pad in zip(sizes, outs, array.shape[2:], pads[:2], strict=True)
    ]
    if any(axis.end < 0 for axis in axes):
        return False
    height, width = (n // stride for n in sizes)
    blocks = ir.Value(
        name=f"{node.name}/blocks",
        type=x.type,
        shape=ir.Shape([x.shape[0], channels * stride**2, height, width]),
    )
    kernel = initializer(graph, f"{weight.name}/{node.name}/blocks", _in_blocks(array, axes, stride))
    attributes = ir.convenience.convert_attributes({"blocksize": stride})
    gather = ir.Node("", "SpaceToDepth", [x], attributes, outputs=[blocks], name=f"{node.name}/SpaceToDepth")
    graph.insert_before(node, gather)
    node.replace_input_with(0, blocks)
    node.replace_input_with(1, kernel)
    node.attributes.clear()
    for attr in ir.convenience.convert_attributes(
        {
            "kernel_shape": [axis.blocks for axis in axes],
            "pads": [*(axis.begin for axis in axes), *(axis.end for axis in axes)],
        }
    ):
        node.attributes.add(attr)
    return True


def _axis(size: int, out: int, kernel: int, begin: int, stride: int) -> _Axis:
    blocks_before = -(-begin // stride)
    taps_before = blocks_before * stride - begin
    blocks = -(-(taps_before + kernel) // stride)
    # Window o reads the blocks from o − blocks_before on; the last one decides the padding at the end.
    return _Axis(taps_before, blocks, blocks_before, out - 1 + blocks - blocks_before - size // stride)


def _in_blocks(array: np.ndarray[Any, Any], axes: list[_Axis], stride: int) -> np.ndarray[Any, Any]:
    """(M, C, kH, kW) → (M, s·s·C, blocks, blocks), channels in the order of SpaceToDepth."""
    m, c, *kernel = array.shape
    padding = [
        (axis.taps_before, axis.blocks * stride - axis.taps_before - k)
        for axis, k in zip(axes, kernel, strict=True)
    ]
    whole = np.pad(array, [(0, 0), (0, 0), *padding])
    rows, columns = (axis.blocks for axis in axes)
    split = whole.reshape(m, c, rows, stride, columns, stride).transpose(0, 3, 5, 1, 2, 4)
    return np.ascontiguousarray(split.reshape(m, stride**2 * c, rows, columns))
