"""Where the walk starts: S = ∂Φ_i*/∂x with i* = argmax_i Φ_i(x), so the gradient of the logits is one-hot.

When the logits come straight from a linear layer, the first step is known: the gradient of its input is
row i* of the weight. A Gather then replaces a one-hot vector and a matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .emitter import Emitter
from .rules import attribute, operand
from .values import constant_array, dtype_of, shape_of, static


def seed_at_maximum(b: Emitter, nodes: Sequence[ir.Node], logits: ir.Value) -> dict[ir.Value, ir.Value]:
    """Emit the seeds of the gradient of the largest logit.

    Ties go to the first maximum.

    Args:
        b: Where the nodes go.
        nodes: The forward graph.
        logits: (N, K).

    Returns:
        Forward value → gradient: the logits themselves, or the input of the linear layer before them.
    """
    batch, classes = shape_of(logits)
    largest = b.op("ArgMax", logits, axis=1, keepdims=0, shape=(batch,), dtype=ir.DataType.INT64)
    node = logits.producer()
    if node is not None and _is_linear(node):
        features, weight = operand(node, 0), operand(node, 1)
        if not attribute(node, "transB", 0):
            weight = b.transpose(weight, [1, 0])
        row = b.op("Gather", weight, largest, axis=0, shape=shape_of(features))
        return {features: b.scale(row, attribute(node, "alpha", 1.0))}
    depth = b.ints(static(classes))
    values = b.constant(np.array([0, 1], dtype=dtype_of(logits).numpy()))
    return {
        logits: b.op("OneHot", largest, depth, values, axis=1, shape=(batch, classes), dtype=dtype_of(logits))
    }


def _is_linear(node: ir.Node) -> bool:
    """Whether the logits are features · W + b with constant W and b."""
    if node.op_type not in ("Gemm", "MatMul") or node.domain or attribute(node, "transA", 0):
        return False
    plain = len(shape_of(operand(node, 0))) == 2
    return plain and all(constant_array(value) is not None for value in node.inputs[1:] if value is not None)
