"""The defended classifier as one graph: y = Φ(x + η·n(S(x))), S(x) = ∂Φ_i*/∂x, i* = argmax_i Φ_i(x).

    image ─ (normalise) ─ x ─ pass 1 ─ plain_logits ─ seed ─ backward ─ saliency S
                          │                                               │ n, η
                          └──────────────────── + ────────────────────────┘
                                                └─ (clip) ─ pass 2 ─ logits

Both passes and the backward read the same initializers: the file is as large as the forward one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import onnx_ir as ir

from sad_runtime.choices import Normalization, choose
from sad_runtime.graph_metadata import PREFIX, graph_metadata

from .graph.errors import GraphError
from .graph.expression import Builder, Expr
from .graph.functions import abs_, maximum, minimum, sign, sqrt
from .graph.values import static
from .graph.write import collects_graph_cycles, label_and_check, to_proto
from .input_gradient import append_saliency, rename
from .input_space import prepend_input_space
from .loading import ForwardGraph, Reading, load_classifier, warn
from .lowering import Lowering, lowering_for
from .parts import Part, mark
from .precision.variant import FP32, Variant

Bound = float | Sequence[float]
"""A bound of x + ηS: one number, or one a channel."""

# Smaller magnitudes than this are taken for zero when a map is normalised: their reciprocal overflows.
_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class Defence:
    """What turns a classifier into the defended one.

    Attributes:
        eta: Hybridization ratio η, finite and at least 0.
        normalization: How S is scaled: ``none``, ``rms``, ``linf`` or ``sign``.
        clip: Lowest and highest value of x + ηS, in the space where S is taken.
        mean: Per channel; with ``std``, (image − mean) / std is put in front, and S is taken after it.
        std: Per channel, positive.

    Raises:
        GraphError: A number out of range, or only one of ``mean`` and ``std``.
        UserError: ``normalization`` is another word.
    """

    eta: float
    normalization: str = Normalization.NONE
    clip: tuple[Bound, Bound] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        choose(Normalization, self.normalization, "normalization")
        if not np.isfinite(self.eta) or self.eta < 0:
            raise GraphError(f"eta must be a finite number of at least 0, got {self.eta}")
        if (self.mean is None) != (self.std is None):
            raise GraphError("mean and std come together")


@collects_graph_cycles
def two_pass(
    model: onnx.ModelProto | str | Path,
    *,
    eta: float,
    normalization: str = "none",
    clip: tuple[Bound, Bound] | None = None,
    conv_gradient: str = "auto",
    target: str = "portable",
    variant: Variant = FP32,
    logits: str | None = None,
    image_size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    notice: Callable[[str], None] = warn,
) -> onnx.ModelProto:
    """Build the two-pass graph of Saliency Adversarial Defense (Algorithm 1, model inference).

    Args:
        model: A forward classifier with one float input (N, C, H, W), from any framework; not modified.
        eta: See :class:`Defence`, like the next two.
        normalization: How S is scaled.
        clip: Bounds of x + ηS.
        conv_gradient: How convolutions are differentiated: ``auto``, ``convtranspose`` or ``conv``.
        target: ``portable``, or ``cpu`` for the fastest form in onnxruntime on the CPU.
        variant: The precision that the graph is going to be lowered to, which decides some forms; the graph
            itself is in float32.
        logits: Name of the logits where the graph has several outputs.
        image_size: Height and width, for a graph that leaves them open.
        mean: Of the network's input, per channel; see :class:`Defence`.
        std: Likewise.
        notice: Called with a line for everything that is taken otherwise than the graph has it, for example
            because it ends in a Softmax; a warning by default.

    Returns:
        A graph of standard operators: ``image`` (N, C, H, W) → ``logits`` (N, K), ``saliency`` (N, C, H, W,
        not normalised), ``plain_logits`` (N, K, the first pass). Dynamic in N if the forward graph is.

    Raises:
        GraphError: Not a classifier, nodes without a gradient rule, or an argument out of range.
        UserError: ``normalization``, ``conv_gradient`` or ``target`` is another word.
    """
    defence = Defence(eta, normalization, clip, mean, std)
    lowering = lowering_for(target, conv_gradient, precision=variant.precision, saliency=variant.saliency)
    forward = load_classifier(model, Reading(logits, image_size, variant.least_opset))
    for each in forward.notices:
        notice(each)
    return to_proto(defended(forward, defence, lowering))


def defended(
    graph: ForwardGraph,
    defence: Defence,
    lowering: Lowering,
    stated: Mapping[str, str] = MappingProxyType({}),
) -> ir.Model:
    """Extend a forward graph to the two-pass graph; see :func:`two_pass`.

    Args:
        graph: The classifier; its graph is the one that is extended and returned.
        defence: What is put around it.
        lowering: What it is written with.
        stated: Further metadata of the file.

    Returns:
        The graph, checked, every node with its :class:`~.parts.Part`.

    Raises:
        GraphError: Some nodes have no gradient rule, or a number does not fit the image's channels.
    """
    scaling, onnx_graph = Normalization(defence.normalization), graph.model.graph
    mark(onnx_graph, Part.FIRST)
    at = graph.image
    if defence.mean is not None and defence.std is not None:
        at = prepend_input_space(graph, defence.mean, defence.std)
        mark(onnx_graph, Part.SPACE)
    lowering.prepare(graph.model)
    mark(onnx_graph, Part.FIRST)
    first = graph.nodes
    saliency = append_saliency(graph, at, lowering)
    mark(onnx_graph, Part.BACKWARD)

    g = Builder(opset=graph.opset, prefix="mix")
    x = g.of(at)
    mixed = x + normalized(g.of(saliency), scaling).op("Mul", x.like(defence.eta))
    if defence.clip is not None:
        mixed = clipped(mixed, *defence.clip)
    g.append_to(onnx_graph)
    mark(onnx_graph, Part.MIX)

    plain = graph.logits
    second = _second_pass(onnx_graph, first, at, mixed.value)[plain]
    mark(onnx_graph, Part.SECOND)
    lowering.complete(graph.model)
    rename(graph, {graph.image: "image", second: "logits", saliency: "saliency", plain: "plain_logits"})
    onnx_graph.outputs[:] = [second, saliency, plain]
    metadata = graph_metadata(
        eta=defence.eta, normalization=scaling, clip=defence.clip, mean=defence.mean, std=defence.std
    )
    metadata |= {f"{PREFIX}conv_gradient": lowering.conv_gradient.value, **stated}
    label_and_check(graph.model, what="two-pass", metadata=metadata)
    return graph.model


def normalized(saliency: Expr, normalization: Normalization) -> Expr:
    """n(S), per sample; a zero map stays zero.

    ``linf``: S / max|S|. ``rms``: S / √mean(S²), from S / max|S| so that no square overflows or vanishes.
    """
    if normalization is Normalization.NONE:
        return saliency
    if normalization is Normalization.SIGN:
        return sign(saliency)
    axes = range(1, saliency.rank)
    unit = saliency / maximum(abs_(saliency).reduce("ReduceMax", axes), _TINY)
    if normalization is Normalization.LINF:
        return unit
    return unit / maximum(sqrt((unit * unit).mean(axes)), _TINY)


def clipped(value: Expr, low: Bound, high: Bound) -> Expr:
    """min(max(value, low), high), bounds per channel; the Clip operator takes one number only."""
    channels = static(value.shape[1])
    least, most = (
        np.broadcast_to(np.asarray(bound, dtype=np.float64), (channels,)).reshape(1, -1, 1, 1)
        for bound in (low, high)
    )
    return minimum(maximum(value, least), most)


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
