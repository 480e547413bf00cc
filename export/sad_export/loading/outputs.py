"""Which output holds the logits, and bringing them into the form (N, K).

Probabilities are cut off (:mod:`.probabilities`). Dimensions of length 1 beside the classes, as a classifier
that ends in a 1×1 convolution has them, are flattened away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

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
    likely = list(_last_of(value for value in graph.outputs if _is_row(value)))
    named = f"--logits {likely[0].name}" if len(likely) == 1 else "--logits NAME"
    shapes = ", ".join(f"{value.name} {text_of(_shape(value))}" for value in graph.outputs)
    problems.append(f"{len(graph.outputs)} outputs ({shapes}); {named} takes one of them")
    return None


def _is_row(value: ir.Value) -> bool:
    return _is_float(value) and _classes(_shape(value)) is not None


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _last_of(values: Iterable[ir.Value]) -> Iterator[ir.Value]:
    """Those that no other is computed from: features come before logits, logits before probabilities."""
    given = list(values)
    for value in given:
        after, seen = [value], set[ir.Value]()
        while after:
            now = after.pop()
            fresh = {made for use in now.uses() for made in use.node.outputs} - seen
            seen |= fresh
            after += fresh
        if not seen & set(given):
            yield value


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
    """K, of a shape (N, K) or one with more dimensions of length 1; 1, of a shape (N) with a dynamic N."""
    if not shape or (len(shape) == 1 and not isinstance(shape[0], str)):
        return None
    others = [n for n in shape[1:] if n != 1]
    if len(others) > 1 or any(isinstance(n, str) for n in others):
        return None
    return int(others[0]) if others else 1


def _problems_of(logits: ir.Value, *, least: int) -> Iterator[str]:
    shape = _shape(logits)
    classes = _classes(shape)
    if not _is_float(logits):
        yield f"output {logits.name!r} is {logits.dtype}: a label, not logits, which --logits NAME takes"
    elif classes is None:
        yield f"output {logits.name!r} has shape {text_of(shape)}, not (N, K)"
    elif classes < least:
        yield (
            f"output {logits.name!r} has one logit; a classifier has at least two (two classes told by the "
            "sigmoid of one value are taken where the graph ends in the Sigmoid)"
        )


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
            f"whose logits are taken as {'(z/2, −z/2)' if tail.first else '(−z/2, z/2)'}"
        )
    return (
        f"output {output.name!r} holds probabilities ({tail.operator}): the logits are taken before it, "
        f"from {tail.logits.name!r}"
    )
