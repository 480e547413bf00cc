"""Where the walk starts: S = ∂Φ_i*/∂x with i* = argmax_i Φ_i(x), so the gradient of the logits is one-hot.

When the logits come straight from a linear layer, the first step is known: the gradient of its input is
row i* of the weight. A Gather then replaces a one-hot vector and a matrix product.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graph.expression import Builder, Expr
from ..graph.nodes import attribute, operand
from ..graph.values import constant_array, dtype_of, shape_of, static


def seed_at_maximum(g: Builder, logits: ir.Value) -> dict[ir.Value, Expr]:
    """Write the seeds of the gradient of the largest logit.

    Ties go to the first maximum.

    Args:
        g: Where the nodes go.
        logits: (N, K).

    Returns:
        Forward value → gradient: the logits themselves, or the input of the linear layer before them.
    """
    batch, classes = shape_of(logits)
    largest = g.op("ArgMax", logits, axis=1, keepdims=0, shape=(batch,), dtype=ir.DataType.INT64)
    node = logits.producer()
    if node is not None and _is_linear(node):
        features, weight = operand(node, 0), g.of(operand(node, 1))
        if not attribute(node, "transB", 0):
            weight = weight.transpose([1, 0])
        row = weight.op("Gather", largest, axis=0, shape=shape_of(features))
        return {features: row * attribute(node, "alpha", 1.0)}
    dtype = dtype_of(logits)
    values = g.constant(np.array([0, 1], dtype=dtype.numpy()))
    depth = g.ints(static(classes))
    return {logits: largest.op("OneHot", depth, values, axis=1, shape=(batch, classes), dtype=dtype)}


def _is_linear(node: ir.Node) -> bool:
    """Whether the logits are features · W + b with constant W and b."""
    if node.op_type not in ("Gemm", "MatMul") or node.domain or attribute(node, "transA", 0):
        return False
    plain = len(shape_of(operand(node, 0))) == 2
    return plain and all(constant_array(value) is not None for value in node.inputs[1:] if value is not None)
