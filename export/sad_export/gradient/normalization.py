"""Normalisations at inference: affine maps of the image."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .emitter import Emitter, constant_array, dtype_of, shape_of
from .rules import Gradients, attribute, vjp


@vjp("BatchNormalization", inputs=[0], refuses=lambda node: _refuse_batch_norm(node))
def batch_normalization(b: Emitter, node: ir.Node, dy: ir.Value, *_: ir.Value | None) -> Gradients:
    """Y = γ·(x − μ)/√(σ² + ε) + β with stored statistics: dx = dy · γ/√(σ² + ε), computed in float64."""
    gamma, variance = constant_array(node.inputs[1]), constant_array(node.inputs[4])
    assert gamma is not None
    assert variance is not None
    factor = gamma.astype(np.float64) / np.sqrt(
        variance.astype(np.float64) + attribute(node, "epsilon", 1e-5)
    )
    column = factor.reshape(1, -1, *[1] * (len(shape_of(dy)) - 2)).astype(dtype_of(dy).numpy())
    return (b.op("Mul", dy, b.constant(column)), None, None, None, None)


def _refuse_batch_norm(node: ir.Node) -> str | None:
    if attribute(node, "training_mode", 0):
        return "BatchNormalization in training mode: export the model in eval mode"
    if any(constant_array(node.inputs[i]) is None for i in (1, 4)):
        return "BatchNormalization with computed scale or variance"
    return None
