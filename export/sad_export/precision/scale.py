"""Keep the gradient inside fp16: the backward is linear, so it may run at another scale that S is divided by.

    c = 2^k with c · max |gradient| ≤ 2⁸ on real images

Gradients of deep or untrained networks fall below 10⁻⁷, which fp16 takes for 0, often by more on their way to
the image than fp16 has range. So the scale is set at the seed, and again at *waists*, values that the whole
gradient passes through, where it has drifted. Powers of two round nothing. Above 2⁸ there are 8 bits of
headroom for images not seen; below it 22 bits keep full precision.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ..graph.errors import GraphError
from ..graph.expression import Array
from ..graph.initializers import initializer
from ..graph.session import cpu_session
from ..parts import Part, mark, parts_of

_HIGHEST = 2.0**8
_IMAGES = 4
# How far the gradient may drift before it is scaled again: a node less for a bit of room.
_MOST_SHRUNK, _MOST_GROWN = 2.0**6, 2.0**2


def gradient_scales(model: ir.Model, images: Array) -> dict[str, float]:
    """Where to scale the gradient of a float32 two-pass graph, and by how much, measured on images.

    Args:
        model: A two-pass graph; not modified.
        images: (N, C, H, W) float32 in [0, 1]; the first few are run.

    Returns:
        Powers of two by the name of the value they multiply, in order from the seed to S.

    Raises:
        GraphError: The graph has no seed that we know.
    """
    measured = model.clone()
    segments = _segments(_backward(measured.graph))
    largest = _largest(measured, [value for segment in segments for value in segment], images)
    factors: dict[str, float] = {}
    scale = 1.0
    for segment in segments:
        size = max(largest[value] for value in segment)
        if size == 0 or not math.isfinite(size):
            continue
        wanted = 2.0 ** math.floor(math.log2(_HIGHEST / size))
        if not factors or not scale / _MOST_GROWN <= wanted <= scale * _MOST_SHRUNK:
            factors[str(segment[0].name)] = wanted / scale
            scale = wanted
    return factors


def scale_gradient(graph: ir.Graph, factors: Mapping[str, float]) -> None:
    """Multiply values of the backward by factors, and S by the reciprocal of them all."""
    if not factors:
        return
    values = {value.name: value for node in graph for value in node.outputs}
    for name, factor in factors.items():
        _multiply(graph, values[name], factor, name=f"backward/scale/{name}")
    mark(graph, Part.BACKWARD)
    saliency = values["saliency"]
    scaled = _multiply(graph, saliency, 1 / math.prod(factors.values()), name="unscale/saliency")
    mark(graph, Part.MIX)  # float32: the scaled saliency leaves the range of fp16
    saliency.name, scaled.name = "saliency/scaled", "saliency"
    graph.outputs[list(graph.outputs).index(saliency)] = scaled
    graph.sort()


def _backward(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that hold gradients, from the seed to S; no masks, and no windows of the first pass.

    The seed is what reads the index of the largest logit: a row of the last weight, or one-hot.
    """
    backward = [node for node, part in parts_of(graph).items() if part is Part.BACKWARD]
    seeds = [node for node in backward if any(_is_argmax(value) for value in node.inputs)]
    if len(seeds) != 1:
        raise GraphError(f"the gradient has {len(seeds)} seeds instead of one")
    found, held = list(seeds), set(seeds[0].outputs)
    for node in backward:
        if any(value in held for value in node.inputs):
            found.append(node)
            held.update(node.outputs)
    return found


def _is_argmax(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "ArgMax"


def _segments(nodes: Sequence[ir.Node]) -> list[list[ir.Value]]:
    """The gradients in order, cut at waists: each segment begins with one and ends with the next."""
    left = Counter(value for node in nodes for value in node.inputs if value is not None)
    live: set[ir.Value] = set()
    segments: list[list[ir.Value]] = []
    for node in nodes:
        for value in node.inputs:
            if value is not None:
                left[value] -= 1
                if not left[value]:
                    live.discard(value)
        live.update(value for value in node.outputs if left[value])
        outputs = [value for value in node.outputs if value.dtype == ir.DataType.FLOAT]
        if segments:
            segments[-1] += outputs
        if len(live) == 1 and outputs and outputs[0] in live:
            segments.append(outputs[:1])
    return segments


def _largest(model: ir.Model, values: Sequence[ir.Value], images: Array) -> dict[ir.Value, float]:
    """max |value| over images."""
    graph = model.graph
    unique = list(dict.fromkeys(values))
    graph.outputs.clear()
    for i, value in enumerate(unique):
        size = ir.Value(name=f"size_{i}", type=value.type, shape=value.shape)
        most = ir.Value(name=f"most_{i}", type=value.type, shape=ir.Shape([]))
        graph.append(ir.Node("", "Abs", [value], outputs=[size]))
        graph.append(ir.Node("", "ReduceMax", [size], [ir.AttrInt64("keepdims", 0)], outputs=[most]))
        graph.outputs.append(most)
    session = cpu_session(model)
    found = session.run(None, {"image": images[:_IMAGES]})
    return {value: float(most) for value, most in zip(unique, found, strict=True)}


def _multiply(graph: ir.Graph, value: ir.Value, factor: float, *, name: str) -> ir.Value:
    """``value · factor``, for everything that reads ``value``."""
    readers = list(value.uses())
    constant = initializer(graph, f"{name}/factor", np.array([factor], dtype=np.float32))
    output = ir.Value(name=f"{name}/output", shape=value.shape, type=value.type)
    graph.append(ir.Node("", "Mul", [value, constant], outputs=[output], name=name))
    for reader in readers:
        reader.node.replace_input_with(reader.idx, output)
    return output
