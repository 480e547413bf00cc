"""What onnxruntime's CPU keeps in its NCHWc layout.

onnxruntime runs convolutions on tensors whose channels are stored in blocks (NCHWc), and keeps that layout
through the operators that enter or keep it (:mod:`sad_export.graph.operators`). Any other operator reorders
the tensor out, and the next convolution reorders it in again.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ...graph.operators import ENTERING_NCHWC, KEEPING_NCHWC

BLOCK = 16
"""Channels a block with AVX-512; a divisor of it elsewhere."""

NEAREST: dict[str, Any] = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}
"""Attributes of a Resize that repeats elements."""


class Layout:
    """Predicts which values of a graph are in NCHWc."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, bool] = {}

    def holds(self, value: ir.Value) -> bool:
        """Whether onnxruntime will have this value in NCHWc."""
        # Without recursion: the chain from the image to the last gradient is thousands of nodes long.
        stack = [value]
        while stack:
            current = stack[-1]
            if current in self._known:
                stack.pop()
                continue
            inputs = self._deciding_inputs(current)
            if inputs is None:
                self._known[current] = False
            elif unknown := [v for v in inputs if v not in self._known]:
                stack += unknown
                continue
            else:
                self._known[current] = all(self._known[v] for v in inputs)
            stack.pop()
        return self._known[value]

    def _deciding_inputs(self, value: ir.Value) -> list[ir.Value] | None:
        """The inputs that must be in NCHWc for ``value`` to be; ``None`` if it cannot be."""
        node = value.producer()
        if node is None or not could_be_nchwc(value):
            return None
        if node.op_type == "Conv":
            return [] if _conv_enters(node) else None
        if node.op_type in ENTERING_NCHWC:
            return []
        if node.op_type not in KEEPING_NCHWC:
            return None
        inputs = [v for v in node.inputs if v is not None]
        if node.op_type in ("BatchNormalization", "Clip"):
            inputs = inputs[:1]
        if node.op_type == "GlobalAveragePool":
            return inputs[:1]
        if node.op_type == "Resize":
            return inputs[:1] if node.attributes.get_string("mode", "nearest") == "nearest" else None
        if node.op_type == "Concat":
            rank = len(value.shape) if value.shape is not None else 0
            return inputs if node.attributes.get_int("axis", 0) % rank == 1 else None
        # Broadcasting leaves the layout.
        return inputs if all(v.shape == value.shape for v in inputs) else None


def _conv_enters(node: ir.Node) -> bool:
    """An ungrouped convolution, a depthwise one, or one with whole blocks in every group."""
    weight = node.inputs[1]
    group = node.attributes.get_int("group", 1)
    if weight is None or weight.shape is None or group == 1:
        return True
    outputs, inputs = weight.shape[0], weight.shape[1]
    if not isinstance(outputs, int) or not isinstance(inputs, int):
        return False
    depthwise = inputs == 1 and outputs == group
    return depthwise or (inputs % BLOCK == 0 and outputs // group % BLOCK == 0)


def could_be_nchwc(value: ir.Value) -> bool:
    """Whether the shape allows it: (N, C, H, W) float32 with whole blocks of channels."""
    shape = value.shape
    if shape is None or len(shape) != 4 or value.dtype != ir.DataType.FLOAT:
        return False
    channels = shape[1]
    return isinstance(channels, int) and channels % BLOCK == 0


def is_concatenated(value: ir.Value | None) -> bool:
    """Whether a Concat made ``value``, so that its gradient will be sliced, which leaves the layout."""
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "Concat"
