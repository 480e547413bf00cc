"""Two-pass graphs in the precisions that an export offers, for the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from sad_export import GraphOptions
from sad_export.graph.write import to_proto
from sad_export.loading import Reading, load_classifier
from sad_export.precision import gradient_scales, lower
from sad_export.two_pass import Defence, defended


def two_pass_in(
    precision: str, forward: onnx.ModelProto | Path, images: np.ndarray[Any, Any], **defence: Any
) -> onnx.ModelProto:
    """The graph that ``export --precision`` writes, not verified.

    Args:
        precision: ``fp32``, ``fp16`` or ``bf16``.
        forward: The forward graph; not modified.
        images: (N, C, H, W) float32 in [0, 1], for the gradient's scale in fp16.
        **defence: As :class:`~sad_export.two_pass.Defence` takes them.
    """
    options = GraphOptions(precision)
    variant = options.variant
    classifier = load_classifier(forward, Reading(least_opset=variant.least_opset))
    graph = defended(classifier, Defence(**defence), options.lowering)
    if variant.is_fp32:
        return to_proto(graph)
    scales = gradient_scales(graph, images) if precision == "fp16" else None
    return to_proto(lower(graph, variant, gradient_scales=scales).graph)
