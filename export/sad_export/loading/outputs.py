"""Which output holds the logits, and bringing them into the form (N, K).

Probabilities are cut off (:mod:`.probabilities`). Dimensions of length 1 beside the classes, as a classifier
that ends in a 1×1 convolution has them, are flattened away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from ..graph.values import Dim, Unsupported, shape_of, text_of
from .probabilities import Tail, cut, find_tail, problem_of


def chosen_output(graph: ir.Graph, name: str | None, problems: list[str]) -> ir.Value | None:
    """The output, or the value of that name, that holds logits or probabilities."""
    names = ", ".join(str(value.name) for value in graph.outputs)
    if name is not None:
        inner = (value for node in graph for value in node.outputs)
        names_of_it = (name, f"forward/{name}")  # names as this package gives them were left to it
        found = next((value for value in (*graph.outputs, *inner) if value.name in names_of_it), None)
        if found is None:
            problems.append(f"no output {name!r} among {names}, and no value of that name inside")
        return found
    if len(graph.outputs) == 1:
        return graph.outputs[0]
    likely = [str(value.name) for value in graph.outputs if _classes(_shape(value)) is not None]
    named = f"--logits {likely[0]}" if len(likely) == 1 else "--logits NAME"
    shapes = ", ".join(f"{value.name} {text_of(_shape(value))}" for value in graph.outputs)
    problems.append(f"{len(graph.outputs)} outputs ({shapes}); {named} takes one of them")
    return None


def logits_of(
    graph: ir.Graph, output: ir.Value, *, keep_output: bool, notices: list[str], problems: list[str]
) -> tuple[ir.Value, bool]:
    """Make (N, K) logits the first output of a graph, in place.

    Args:
        graph: In normal form.
        output: What :func:`chosen_output` found.
        keep_output: Where probabilities are cut off, keep them as a second output.
        notices: Gets a line for everything that is taken otherwise than it stands.
        problems: Gets the reasons why there are no logits, if so.

    Returns:
        The logits, and whether probabilities were cut off.
    """
    tail = find_tail(output)
    try:
        problem = None if tail is None else problem_of(tail)
    except Unsupported as error:
        problem = str(error)
    if problem is not None:
        problems.append(problem)
        return output, True
    reasons = list(_problems_of(output, least=1 if tail is not None else 2))
    if reasons:
        problems += reasons
        return output, tail is not None
    logits = output
    if tail is not None:
        logits = cut(graph, output, tail)
        notices.append(_notice(output, tail))
    if len(shape_of(logits)) > 2:
        flat = _flattened(graph, logits)
        notices.append(
            f"output {output.name!r} has shape {text_of(shape_of(logits))} and is taken as "
            f"{text_of(shape_of(flat))}"
        )
        logits = flat
    # Other outputs are dropped: their nodes would be carried through both passes for nothing.
    graph.outputs[:] = [logits, output] if keep_output and tail is not None else [logits]
    return logits, tail is not None


def _shape(value: ir.Value) -> tuple[Dim, ...]:
    return shape_of(value) if value.shape is not None else ()


def _classes(shape: Sequence[Dim]) -> int | None:
    """K, of a shape (N, K) or one with more dimensions of length 1."""
    if len(shape) < 2:
        return None
    others = [n for n in shape[1:] if n != 1]
    if len(others) > 1 or any(isinstance(n, str) for n in others):
        return None
    return int(others[0]) if others else 1


def _problems_of(logits: ir.Value, *, least: int) -> Iterator[str]:
    shape = _shape(logits)
    classes = _classes(shape)
    if classes is None:
        yield f"output {logits.name!r} has shape {text_of(shape)}, not (N, K)"
    elif classes < least:
        yield f"output {logits.name!r} has {classes} logit; a classifier has at least two"


def _flattened(graph: ir.Graph, value: ir.Value) -> ir.Value:
    classes = _classes(shape_of(value))
    name = f"{value.name}/flat"
    node = ir.Node("", "Flatten", [value], [ir.AttrInt64("axis", 1)], name=name)
    flat = node.outputs[0]
    flat.name, flat.type = name, value.type
    flat.shape = ir.Shape([shape_of(value)[0], classes])
    graph.append(node)
    return flat


def _notice(output: ir.Value, tail: Tail) -> str:
    if tail.operator == "Sigmoid":
        return (
            f"output {output.name!r} is the Sigmoid of one value z, {tail.logits.name!r}: two classes, "
            "whose logits are taken as (−z/2, z/2)"
        )
    return (
        f"output {output.name!r} holds probabilities ({tail.operator}): the logits are taken before it, "
        f"from {tail.logits.name!r}"
    )
