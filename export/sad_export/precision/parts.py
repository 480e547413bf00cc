"""The parts of a two-pass graph, told apart by what depends on what.

image ─ SPACE ─ x ─ FIRST ─ plain_logits ─ BACKWARD ─ saliency ─ MIX ─ SECOND ─ logits
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import onnx_ir as ir

from ..graph.errors import GraphError

UNSCALE = "unscale/"
"""Prefix of what brings a scaled saliency back to its size; the backward's other nodes never have it."""

_OUTPUTS = ("logits", "saliency", "plain_logits")


class Part(enum.Enum):
    """Where a node belongs."""

    SPACE = "x = (image − mean) / std"
    FIRST = "first pass"
    BACKWARD = "from the seed to the saliency"
    MIX = "x + η·n(S), and its clip"
    SECOND = "second pass"


def parts_of(graph: ir.Graph) -> Mapping[ir.Node, Part]:
    """The part of every node.

    Raises:
        GraphError: Not a graph that :func:`sad_export.two_pass` made.
    """
    outputs = {value.name: value for value in graph.outputs}
    if missing := [name for name in _OUTPUTS if name not in outputs]:
        raise GraphError(f"not a two-pass graph: it has no output {', '.join(missing)}")
    first = ancestors(outputs["plain_logits"])
    saliency = ancestors(outputs["saliency"])
    parts = {}
    for node in graph:
        name = node.name or ""
        if node in first:
            parts[node] = Part.SPACE if name.startswith("normalise/") else Part.FIRST
        elif node in saliency:
            parts[node] = Part.MIX if name.startswith(UNSCALE) else Part.BACKWARD
        else:  # only nodes that two_pass named itself are left
            parts[node] = Part.SECOND if name.startswith("second/") else Part.MIX
    return parts


def ancestors(value: ir.Value | None) -> set[ir.Node]:
    """The nodes that a value is computed by."""
    found: set[ir.Node] = set()
    waiting = [value.producer() if value is not None else None]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [source.producer() for source in node.inputs if source is not None]
    return found
