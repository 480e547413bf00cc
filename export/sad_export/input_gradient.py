"""The input gradient of a classifier as a graph of its own: logits, and ∂Φ_i*/∂x for the largest logit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from sad_runtime.choices import Objective
from sad_runtime.graph_metadata import PREFIX

from .feature_map import value_at
from .gradient import LARGEST, Seed, reverse, without_rule
from .gradient.reverse import dependents, stopping
from .graph.errors import GraphError
from .graph.write import collects_graph_cycles, label_and_check, to_proto
from .loading import ForwardGraph, Reading, load_classifier, warn
from .lowering import Lowering, Portable, lowering_for

OF_KEY = f"{PREFIX}of"
"""Metadata key of a gradient graph that says what it is the gradient of."""

AT_KEY = f"{PREFIX}at"
"""Metadata key of one that is not taken at the image: the value that it is taken at."""

_NAMED_AT_MOST = 8


def unsupported_nodes(model: onnx.ModelProto | str | Path, *, logits: str | None = None) -> list[str]:
    """All nodes between image and logits that cannot be differentiated.

    Args:
        model: A forward classifier with one float input (N, C, H, W).
        logits: Name of the logits where the graph has several outputs.

    Returns:
        One line a node, ``name: reason``; empty if there is none.

    Raises:
        GraphError: Not a classifier at all.
    """
    graph = load_classifier(model, Reading(logits))
    missing = without_rule(Portable(opset=graph.opset), graph.nodes, graph.image, graph.logits)
    return [f"{node.name}: {reason}" for node, reason in missing]


@collects_graph_cycles
def input_gradient(
    model: onnx.ModelProto | str | Path,
    *,
    of: str | int = Objective.LARGEST,
    at: str | None = None,
    logits: str | None = None,
    image_size: tuple[int, int] | None = None,
    conv_gradient: str = "auto",
    target: str = "portable",
    notice: Callable[[str], None] = warn,
) -> onnx.ModelProto:
    """Add the gradient of a logit, by default of the largest (Eq. 2 of the paper), with respect to the image.

    Args:
        model: A forward classifier with one float input (N, C, H, W), from any framework; not modified.
        of: ``largest``, the number of a class, or what a further input says: ``label`` or ``loss`` (both
            with an input ``label`` (N,) of int64), or ``cotangent`` (with an input ``cotangent`` (N, K)).
        at: What it is taken with respect to, in place of the image: the name of a value of the graph or of
            its node, or ``last`` for the last feature map (N, C, h, w).
        logits: Name of the logits where the graph has several outputs.
        image_size: Height and width, for a graph that leaves them open.
        conv_gradient: How convolutions are differentiated: ``auto``, ``convtranspose`` or ``conv``.
        target: ``portable``, or ``cpu`` for the fastest form in onnxruntime on the CPU.
        notice: Called with a line for everything that is taken otherwise than the graph has it, for example
            because it ends in a Softmax; a warning by default.

    Returns:
        A graph of standard operators with outputs ``logits`` (N, K) and ``gradient`` (N, C, H, W),
        dynamic in N if the forward graph is. With ``at``: ``logits``, ``activation``, which is the value
        named, and ``gradient``, of its shape.

    Raises:
        GraphError: Not a classifier, some nodes have no gradient rule (all are named), or ``at`` is nothing
            between the image and the logits.
        UserError: ``conv_gradient`` or ``target`` is another word.
    """
    seed = Seed.of(of)
    lowering = lowering_for(target, conv_gradient)
    graph = load_classifier(model, Reading(logits, image_size))
    for each in graph.notices:
        notice(each)
    return to_proto(differentiated(graph, lowering, seed, at=value_at(graph, at, notice)))


def differentiated(
    graph: ForwardGraph,
    lowering: Lowering,
    seed: Seed = LARGEST,
    *,
    at: ir.Value | None = None,
    held: Callable[[ForwardGraph], Collection[ir.Node]] = lambda graph: (),
) -> ir.Model:
    """Extend a forward graph to ``logits`` and ``gradient``; see :func:`input_gradient`.

    Args:
        graph: The classifier; its graph is the one that is extended and returned.
        lowering: What the gradient is written with.
        seed: What it is the gradient of.
        at: A value of the graph to take it at; the image by default.
        held: Gives the nodes of the rewritten graph whose outputs are held constant.

    Raises:
        GraphError: Some nodes have no gradient rule, or there is no such class.
    """
    check_class(graph, seed)
    stated = {OF_KEY: seed.word} if at is None else {OF_KEY: seed.word, AT_KEY: str(at.name)}
    at = prepared(graph, lowering, at)
    given = seed.new_input(graph.logits)
    gradient = append_saliency(graph, at, lowering, seed, given, held=held(graph))
    lowering.complete(graph.model)
    outputs = {graph.logits: "logits", gradient: "gradient"}
    if at is not graph.image:
        outputs = {graph.logits: "logits", at: "activation", gradient: "gradient"}
    finish(graph, outputs, given, what="input gradient", metadata=stated)
    return graph.model


def check_class(graph: ForwardGraph, seed: Seed) -> None:
    """Refuse the gradient of a class that there is not.

    Raises:
        GraphError: There is no such class.
    """
    if seed.objective is Objective.CLASS and not seed.index < graph.num_classes:
        raise GraphError(
            f"there is no class {seed.index} among {graph.num_classes}",
            hint=f"classes are numbered from 0 to {graph.num_classes - 1}",
        )


def prepared(graph: ForwardGraph, lowering: Lowering, at: ir.Value | None) -> ir.Value:
    """Rewrite a forward graph as its target has it, and keep the value that the gradient is taken at.

    Returns:
        That value in the rewritten graph; the image if there is none.
    """
    if at is None:
        lowering.prepare(graph.model)
        return graph.image
    outputs = graph.model.graph.outputs
    outputs.append(at)  # what a rewrite may not take away
    lowering.prepare(graph.model)
    return outputs.pop()


def finish(
    graph: ForwardGraph,
    outputs: dict[ir.Value, str],
    given: ir.Value | None,
    *,
    what: str,
    metadata: Mapping[str, str],
) -> None:
    """Give an extended forward graph its outputs, their names and its metadata, and check it.

    Args:
        graph: What was extended.
        outputs: Its outputs from now on, in order, with their names.
        given: The further input of the seed, if it has one.
        what: For the producer string.
        metadata: What the file says of itself.
    """
    names = dict(outputs)
    if given is not None:
        graph.model.graph.inputs.append(given)
        names[given] = str(given.name)
    rename(graph, names)
    graph.model.graph.outputs[:] = list(outputs)
    label_and_check(graph.model, what=what, metadata=metadata)


def append_saliency(
    graph: ForwardGraph,
    at: ir.Value,
    lowering: Lowering,
    seed: Seed = LARGEST,
    given: ir.Value | None = None,
    *,
    held: Collection[ir.Node] = (),
) -> ir.Value:
    """Append S = ∂Φ_i*/∂at, i* = argmax_i Φ_i, or the gradient of something else, to a forward graph.

    Args:
        graph: The graph to extend.
        at: The value that S is taken at: the image, or the network's input after normalisation.
        lowering: What it is written with.
        seed: What it is the gradient of.
        given: The further input of the seed, if it has one.
        held: Nodes whose outputs are held constant.

    Returns:
        S, of ``at``'s shape.

    Raises:
        GraphError: Some nodes cannot be differentiated; the graph is unchanged.
    """
    held = frozenset(held)
    nodes = [node for node in graph.nodes if node not in held]
    if graph.logits not in dependents(nodes, at):
        raise GraphError(_without_gradient(graph, nodes, at))
    if missing := without_rule(Portable(opset=graph.opset), nodes, at, graph.logits):
        listed = "; ".join(f"{node.name}: {reason}" for node, reason in missing[:_NAMED_AT_MOST])
        more = f"; and {len(missing) - _NAMED_AT_MOST} more" if len(missing) > _NAMED_AT_MOST else ""
        raise GraphError(
            f"{len(missing)} nodes cannot be differentiated: {listed}{more}",
            hint="CONTRIBUTING.md shows how to add a rule, a function marked @vjp; "
            "sad_export.unsupported_nodes lists all such nodes",
        )
    g = lowering.writer(opset=graph.opset)
    gradient = reverse(g, nodes, seed.write(g, graph.logits, given), at)
    g.append_to(graph.model.graph)
    return gradient


def _without_gradient(graph: ForwardGraph, nodes: Sequence[ir.Node], at: ir.Value) -> str:
    """Why no gradient of the logits reaches a value."""
    ends = [f"{node.name} ({node.op_type})" for node in stopping(nodes, at, graph.logits)]
    if not ends:
        return f"the logits {graph.logits.name!r} do not depend on {at.name!r}"
    more = f" and {len(ends) - _NAMED_AT_MOST} more" if len(ends) > _NAMED_AT_MOST else ""
    return (
        f"the gradient of {graph.logits.name!r} at {at.name!r} is zero everywhere: each way leads through "
        f"{', '.join(ends[:_NAMED_AT_MOST])}{more}, which gives steps"
    )


def rename(graph: ForwardGraph, names: dict[ir.Value, str]) -> None:
    """Name values, and move whatever had one of these names before out of the way."""
    wanted = set(names.values())
    taken = [*graph.model.graph.inputs, *graph.model.graph.initializers.values()]
    taken += [value for node in graph.model.graph for value in node.outputs]
    for value in taken:
        if value.name in wanted and value not in names:
            if value.const_value is not None:  # its tensor has a name too, and copies of the graph share it
                value.const_value = ir.tensor(value.const_value.numpy(), dtype=value.const_value.dtype)
            value.name = f"forward/{value.name}"
    for value, name in names.items():
        value.name = name
