"""The defended classifier as one graph: y = Φ(x + η·n(S(x))), S(x) = ∂Φ_i*/∂x, i* = argmax_i Φ_i(x).

    image ─ (normalise) ─ x ─ pass 1 ─ plain_logits ─ seed ─ backward ─ saliency S
                          │                                               │ n, η
                          └──────────────────── + ────────────────────────┘
                                                └─ (clip) ─ pass 2 ─ logits

Both passes and the backward read the same initializers: the file is as large as the forward one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from sad_runtime.choices import Normalization
from sad_runtime.graph_metadata import PREFIX, graph_metadata

from .gradient import Dgrad, Emitter, Target
from .gradient.values import shape_of, static
from .input_gradient import adopt, append_saliency, rename
from .input_space import prepend_input_space
from .model import GraphError, finish, frees_its_graph, load_classifier, warn
from .targets import complete, prepare

Bound = float | Sequence[float]
"""A bound of x + ηS: one number, or one a channel."""

# Smaller magnitudes than this are taken for zero when a map is normalised: their reciprocal overflows.
_TINY = 1e-30


@frees_its_graph
def two_pass(
    model: onnx.ModelProto | str | Path,
    *,
    eta: float,
    normalization: str = "none",
    clip: tuple[Bound, Bound] | None = None,
    dgrad: str = "auto",
    target: str = "portable",
    logits: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    notice: Callable[[str], None] = warn,
) -> onnx.ModelProto:
    """Build the two-pass graph of Saliency Adversarial Defense (Algorithm 1, model inference).

    Args:
        model: A forward classifier with one float input (N, C, H, W), from any framework; not modified.
        eta: Hybridization ratio η, finite and at least 0.
        normalization: How S is scaled: ``none``, ``rms``, ``linf`` or ``sign``.
        clip: Lowest and highest value of x + ηS, in the space where S is taken.
        dgrad: How convolutions are differentiated: ``auto``, ``convtranspose`` or ``conv``; ``auto-fp16`` for
            a graph that will be lowered to fp16.
        target: ``portable``, or ``cpu`` for the fastest form in onnxruntime on the CPU.
        logits: Name of the logits where the graph has several outputs.
        mean: Per channel; with ``std``, (image − mean) / std is put in front, and S is taken after it.
        std: Per channel, positive.
        notice: Called with one line if the graph is taken otherwise than it stands, for example because it
            ends in a Softmax; a warning by default.

    Returns:
        A graph of standard operators: ``image`` (N, C, H, W) → ``logits`` (N, K), ``saliency`` (N, C, H, W,
        not normalised), ``plain_logits`` (N, K, the first pass). Dynamic in N if the forward graph is.

    Raises:
        GraphError: Not a classifier, nodes without a gradient rule, or an argument out of range.
    """
    if not np.isfinite(eta) or eta < 0:
        raise GraphError(f"eta must be a finite number of at least 0, got {eta}")
    if (mean is None) != (std is None):
        raise GraphError("mean and std come together")
    graph = load_classifier(model, logits=logits)
    if graph.notice is not None:
        notice(graph.notice)
    at = graph.image
    if mean is not None and std is not None:
        at = prepend_input_space(graph, mean, std)
    prepare(graph.model, Target(target))
    plain = graph.logits
    forward = graph.nodes
    saliency = append_saliency(graph, at, dgrad=Dgrad(dgrad), target=Target(target))

    b = Emitter(opset=graph.opset, prefix="mix")
    step = b.op("Mul", normalized(b, saliency, Normalization(normalization)), b.like(at, eta))
    mixed = b.op("Add", at, step)
    if clip is not None:
        mixed = clipped(b, mixed, *clip)
    adopt(graph.model.graph, b)

    second = _second_pass(graph.model.graph, forward, at, mixed)[plain]
    complete(graph.model, Target(target))
    rename(graph, {graph.image: "image", second: "logits", saliency: "saliency", plain: "plain_logits"})
    graph.model.graph.outputs[:] = [second, saliency, plain]
    metadata = graph_metadata(
        eta=eta, normalization=Normalization(normalization), clip=clip, mean=mean, std=std
    )
    return finish(graph.model, what="two-pass", metadata=metadata | {f"{PREFIX}dgrad": dgrad})


def normalized(b: Emitter, saliency: ir.Value, normalization: Normalization) -> ir.Value:
    """n(S), per sample; a zero map stays zero.

    ``linf``: S / max|S|. ``rms``: S / √mean(S²), from S / max|S| so that no square overflows or vanishes.
    """
    if normalization is Normalization.NONE:
        return saliency
    if normalization is Normalization.SIGN:
        return b.op("Sign", saliency)
    axes = range(1, len(shape_of(saliency)))
    tiny = b.like(saliency, _TINY)
    largest = b.op("Max", b.reduce("ReduceMax", b.op("Abs", saliency), axes), tiny)
    unit = b.op("Div", saliency, largest)
    if normalization is Normalization.LINF:
        return unit
    mean_square = b.reduce("ReduceMean", b.op("Mul", unit, unit), axes)
    return b.op("Div", unit, b.op("Max", b.op("Sqrt", mean_square), tiny))


def clipped(b: Emitter, value: ir.Value, low: Bound, high: Bound) -> ir.Value:
    """min(max(value, low), high), bounds per channel; the Clip operator takes one number only."""
    channels = static(shape_of(value)[1])
    for op_type, bound in (("Max", low), ("Min", high)):
        column = np.broadcast_to(np.asarray(bound, dtype=np.float64), (channels,)).reshape(1, -1, 1, 1)
        value = b.op(op_type, value, b.like(value, column))
    return value


def _second_pass(
    graph: ir.Graph, forward: Sequence[ir.Node], at: ir.Value, mixed: ir.Value
) -> dict[ir.Value, ir.Value]:
    """Repeat the nodes that depend on ``at`` with ``mixed`` in its place; everything else is shared."""
    copies = {at: mixed}
    for node in forward:
        if not any(value in copies for value in node.inputs):
            continue
        outputs = [
            ir.Value(name=f"second/{value.name}", shape=value.shape, type=value.type)
            if value.name
            else ir.Value(name="")
            for value in node.outputs
        ]
        copies.update(zip(node.outputs, outputs, strict=True))
        inputs = [copies.get(value, value) if value is not None else None for value in node.inputs]
        graph.append(
            ir.Node(
                node.domain,
                node.op_type,
                inputs,
                attributes=list(node.attributes.values()),
                outputs=outputs,
                name=f"second/{node.name}",
            )
        )
    return copies
