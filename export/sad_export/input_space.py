"""Pixels to network input inside the graph: x = (image − mean) / std, written as image·(1/std) − mean/std."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .graph.errors import GraphError
from .graph.expression import Builder
from .loading import ForwardGraph


def prepend_input_space(graph: ForwardGraph, mean: Sequence[float], std: Sequence[float]) -> ir.Value:
    """Put the affine map in front of a classifier; its input then takes pixels in [0, 1].

    Args:
        graph: Extended in place.
        mean: Per channel, in [0, 1].
        std: Per channel, positive.

    Returns:
        x, the value that the network sees and that S is taken at.

    Raises:
        GraphError: Not one value per channel, or not finite and positive.
    """
    channels = graph.image_shape[1]
    if len(mean) != channels or len(std) != channels:
        raise GraphError(f"mean and std need {channels} values each, got {len(mean)} and {len(std)}")
    if not np.isfinite(mean).all() or not all(np.isfinite(s) and s > 0 for s in std):
        raise GraphError(f"mean must be finite and std positive, got {list(mean)} and {list(std)}")
    readers = [use.node for use in graph.image.uses()]
    g = Builder(opset=graph.opset, prefix="normalise")
    shift, scale = (np.asarray(each, dtype=np.float64).reshape(1, -1, 1, 1) for each in (mean, std))
    scaled = ((g.of(graph.image) - shift) / scale).value
    g.append_to(graph.model.graph)
    for node in readers:
        for i, value in enumerate(node.inputs):
            if value is graph.image:
                node.replace_input_with(i, scaled)
    graph.model.graph.sort()
    return scaled
