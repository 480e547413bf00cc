"""The value inside a classifier that a gradient is taken at: one that is named, or the last feature map.

A feature map is (N, C, h, w) with h·w > 1. The last one is what the network's head reads: a pooling over all
positions makes (N, C, 1, 1) or (N, C) of it, or a Flatten (N, C·h·w), and nothing after that has positions
again. So the pooling inside a squeeze-and-excitation block is not taken for the head, nor an attention's
reshaping. Poolings to a smaller map that stand directly before the head belong to it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import onnx_ir as ir

from .gradient.reverse import ancestors, dependents
from .graph.errors import GraphError
from .graph.values import Dim, dtype_of, shape_of, text_of
from .loading import ForwardGraph

LAST = "last"
"""The word for the last feature map."""

_NEAR = 3
_POOLINGS = frozenset({"AveragePool", "MaxPool", "LpPool"})


def value_at(graph: ForwardGraph, name: str | None, notice: Callable[[str], None]) -> ir.Value | None:
    """The value that a gradient is to be taken at.

    Args:
        graph: The classifier.
        name: Of a value, or of a node with one output; or ``last``; None for the image.
        notice: Told which one ``last`` is.

    Returns:
        The value; None for the image.

    Raises:
        GraphError: There is none of that name between the image and the logits, or no feature map.
    """
    if name is None:
        return None
    if name == LAST:
        found = last_feature_map(graph)
        notice(f"the last feature map is {found.name} {text_of(shape_of(found))}")
        return found
    inner = _inner_values(graph)
    named = {str(value.name): value for value in inner}
    for value in inner:
        node = value.producer()
        if node is not None and node.name and len(node.outputs) == 1:
            named.setdefault(node.name, value)
    if name in named:
        return named[name]
    near = difflib.get_close_matches(name, named, n=_NEAR, cutoff=0.5)
    values = [value for node in graph.nodes for value in node.outputs]
    values += [*graph.model.graph.inputs, *graph.model.graph.initializers.values()]
    known = {value.name for value in values} | {node.name for node in graph.nodes}
    raise GraphError(
        f"{name!r} does not lie between the image and the logits"
        if name in known
        else f"the graph has no value {name!r}",
        hint=f"near it: {', '.join(near)}" if near else f"--at {LAST} takes the last feature map by itself",
    )


def last_feature_map(graph: ForwardGraph) -> ir.Value:
    """The last map (N, C, h, w), h·w > 1, that the logits are computed from through a pooling or a Flatten.

    Raises:
        GraphError: There is none, as in networks that go on with a sequence of tokens.
    """
    inner = set(_inner_values(graph))
    batch = graph.image_shape[0]
    ends = [
        node
        for node in graph.nodes
        if node.inputs
        and node.inputs[0] in inner
        and any(value in inner or value is graph.logits for value in node.outputs)
        and _loses_positions(_shape(node.inputs[0]), _shape(node.outputs[0]), batch)
    ]
    for node in reversed(ends):
        after = dependents(graph.nodes, node.outputs[0]) & inner
        if any(_is_map(_shape(value)) for value in after):
            continue
        found = node.inputs[0]
        while found is not None and (producer := found.producer()) is not None:
            source = producer.inputs[0] if producer.op_type in _POOLINGS else None
            if source not in inner:
                break
            found = source
        assert found is not None
        return found
    raise GraphError(
        "no feature map (N, C, h, w) goes into the head of this network by a pooling or a Flatten; "
        "networks of tokens, such as ViT, have none",
        hint="--at NAME takes another value by its name in the graph, for example that of a convolution",
    )


def check_map(at: ir.Value) -> None:
    """Refuse a value that is no feature map.

    Raises:
        GraphError: It is not (N, C, h, w) with static C, h and w, or it has one position alone.
    """
    shape = _shape(at)
    if not _is_map(shape) or any(isinstance(n, str) for n in shape[1:]):
        raise GraphError(
            f"{at.name} is {text_of(shape)}, and Grad-CAM needs a map (N, C, h, w) of several positions",
            hint=f"--at {LAST} takes the last one by itself",
        )


def _inner_values(graph: ForwardGraph) -> list[ir.Value]:
    """The floats that depend on the image and that the logits depend on, without these two, in order."""
    nodes = graph.nodes
    on_path = dependents(nodes, graph.image) & ancestors(nodes, [graph.logits])
    values = [value for node in nodes for value in node.outputs if value in on_path]
    return [
        value
        for value in values
        if value is not graph.logits and value.shape is not None and dtype_of(value).is_floating_point()
    ]


def _shape(value: ir.Value | None) -> tuple[Dim, ...]:
    return () if value is None or value.shape is None else shape_of(value)


def _is_map(shape: tuple[Dim, ...]) -> bool:
    """Whether there are several positions; (N, 1, 1, C) is one of them with its channels last."""
    return len(shape) == 4 and shape[2:] != (1, 1) and shape[1:3] != (1, 1)


def _loses_positions(before: tuple[Dim, ...], after: tuple[Dim, ...], batch: Dim) -> bool:
    """Whether (N, C, h, w) becomes (N, C, 1, 1), (N, C) or (N, C·h·w)."""
    if not _is_map(before) or any(isinstance(n, str) for n in before[1:]):
        return False
    if before[0] != batch or after[:1] != (batch,):
        return False
    channels, height, width = (int(n) for n in before[1:])
    return after[1:] in ((channels, 1, 1), (channels,), (channels * height * width,))
