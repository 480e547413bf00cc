"""White-box attacks on a file: the gradient of a loss of what the file itself computes, as a graph.

A two-pass graph y = Φ(x + η·n(S(x))) can be attacked in three ways:

* ``plain``: the gradient of the first pass Φ(x); what it finds is transferred to the file.
* ``constant``: of the second pass, with S held constant: ∂Φ/∂x at x + η·n(S).
* ``exact``: of the second pass through S as well, so the backward nodes of the file are differentiated once
  more. Where the network is piecewise linear, S is constant almost everywhere and both are the same.

A classifier without a defence has the ``plain`` way alone. Whatever gave the gradient, whether an image fools
the file is for the file to say: precision is lowered, engines are fused, and the gradient is not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir

from sad_runtime.choices import Objective, Way, choose
from sad_runtime.errors import UserError
from sad_runtime.graph_metadata import PREFIX

from .gradient import Seed
from .graph.errors import GraphError
from .graph.nodes import operand
from .graph.values import shape_of
from .graph.write import collects_graph_cycles, label_and_check, to_proto
from .input_gradient import differentiated, rename
from .loading import ForwardGraph, Reading, load_classifier, warn
from .loading.read import read
from .lowering import lowering_for

LOSSES = (Objective.LOSS, Objective.COTANGENT)

_LOGITS, _PLAIN_LOGITS = "logits", "plain_logits"


@collects_graph_cycles
def attack_graph(
    file: onnx.ModelProto | str | Path,
    *,
    way: str = Way.CONSTANT,
    of: str = Objective.LOSS,
    logits: str | None = None,
    image_size: tuple[int, int] | None = None,
    target: str = "portable",
    notice: Callable[[str], None] = warn,
) -> onnx.ModelProto:
    """The gradient of a loss with respect to the image, of a file as it is shipped.

    Args:
        file: A two-pass graph of any precision and form, or, for ``plain``, any classifier; not modified.
            Half precision is computed in float32; integers are differentiated straight through.
        way: ``plain``, ``constant`` or ``exact``; the module says what they are.
        of: ``loss``: the cross-entropy of an input ``label`` (N,) of int64. ``cotangent``: the logits times
            an input ``cotangent`` (N, K), so any loss, by its gradient with respect to the logits.
        logits: Name of the logits of a classifier with several outputs. A two-pass graph's are known; here it
            names another value (N, K) inside that is attacked in their place, features for example.
        image_size: Height and width, for a classifier that leaves them open.
        target: ``portable``, or ``cpu`` for gradients in onnxruntime's fastest form.
        notice: Called with a line for everything that is taken otherwise than the file has it.

    Returns:
        A graph of standard operators with outputs ``logits`` (N, K), those the gradient is of, and
        ``gradient`` (N, C, H, W).

    Raises:
        GraphError: Not a classifier; no two-pass graph, but for ``plain``; or nodes without a gradient rule.
        UserError: ``way``, ``of`` or ``target`` is another word.
    """
    chosen = choose(Way, way, "way")
    if of not in LOSSES:
        raise UserError(f"no loss {of!r}; there are {', '.join(LOSSES)}", hint="any other is a cotangent")
    lowering = lowering_for(target)
    model = read(file)
    if is_two_pass(model):
        logits = logits or (_PLAIN_LOGITS if chosen is Way.PLAIN else _LOGITS)
    elif chosen is not Way.PLAIN:
        raise GraphError(
            f"the {chosen} way goes through both passes, and this is no two-pass graph",
            hint="a classifier without a defence is attacked the plain way",
        )
    graph = load_classifier(file, Reading(logits, image_size, in_float32=True))
    for each in graph.notices:
        notice(each)
    held = _held if chosen is Way.CONSTANT else _nothing
    return to_proto(differentiated(graph, lowering, Seed.of(of), held=held))


@collects_graph_cycles
def logits_graph(
    file: onnx.ModelProto | str | Path,
    *,
    logits: str | None = None,
    image_size: tuple[int, int] | None = None,
    notice: Callable[[str], None] = warn,
) -> onnx.ModelProto:
    """The part of a file that computes its logits, with the one output ``logits`` (N, K).

    Args:
        file: Any classifier, or a two-pass graph; not modified.
        logits: Which value holds them: ``plain_logits`` is the first pass of a two-pass graph.
        image_size: Height and width, for a classifier that leaves them open.
        notice: Called with a line for everything that is taken otherwise than the file has it.

    Raises:
        GraphError: Not a classifier.
    """
    graph = load_classifier(file, Reading(logits, image_size))
    for each in graph.notices:
        notice(each)
    rename(graph, {graph.logits: _LOGITS})
    label_and_check(graph.model, what="classifier", metadata={})
    return to_proto(graph.model)


def features_of(file: onnx.ModelProto | str | Path) -> str | None:
    """Name of the value (N, D) that the logits of a two-pass graph are computed from, by a linear layer.

    Returns:
        None if they come from something else.
    """
    model = read(file)
    output = next((value for value in model.graph.outputs if value.name == _LOGITS), None)
    node = None if output is None else output.producer()
    if node is None or node.op_type not in ("Gemm", "MatMul"):
        return None
    return operand(node, 0).name


def is_two_pass(model: ir.Model) -> bool:
    """Whether a model is a two-pass graph that sad-deploy wrote."""
    return f"{PREFIX}eta" in model.metadata_props


def _nothing(graph: ForwardGraph) -> tuple[ir.Node, ...]:
    return ()


def _held(graph: ForwardGraph) -> list[ir.Node]:
    return scaled_saliency(graph)[1]


def scaled_saliency(graph: ForwardGraph) -> tuple[ir.Value, list[ir.Node]]:
    """η·n(S) in a two-pass graph, and the nodes that make it, found by what they compute, not by their names.

    S is linear in its seed, the one-hot vector of the predicted class. So the first sum of a value that
    comes from the seed and of one that does not, both of the image's size, is x + η·n(S).

    Args:
        graph: With its logits those of the second pass.

    Raises:
        GraphError: There is no such sum.
    """
    image = graph.image
    seeded: set[ir.Value] = set()
    since: list[ir.Node] = []
    of_image = {image}
    for node in graph.nodes:
        inputs = [value for value in node.inputs if value is not None]
        from_seed = [value for value in inputs if value in seeded]
        from_image = [value for value in inputs if value in of_image and value not in seeded]
        if node.op_type == "Add" and from_seed and from_image and _like(from_seed[0], image):
            return from_seed[0], since
        if node.op_type == "ArgMax" or from_seed:
            seeded.update(node.outputs)
            since.append(node)
        if from_image or from_seed:
            of_image.update(node.outputs)
    raise GraphError(
        "no sum of image and saliency was found in the graph",
        hint="write it again with this version of sad-deploy, or attack it the plain or the exact way",
    )


def _like(value: ir.Value, image: ir.Value) -> bool:
    return value.shape is not None and shape_of(value)[1:] == shape_of(image)[1:]
