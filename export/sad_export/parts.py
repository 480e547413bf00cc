"""The parts of a two-pass graph, which its builder notes on every node.

image ─ SPACE ─ x ─ FIRST ─ plain_logits ─ BACKWARD ─ saliency ─ MIX ─ SECOND ─ logits
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import onnx_ir as ir

from .graph.errors import GraphError

_KEY = "sad_deploy.part"


class Part(enum.Enum):
    """Where a node belongs."""

    SPACE = "x = (image − mean) / std"
    FIRST = "first pass"
    BACKWARD = "from the seed to the saliency"
    MIX = "x + η·n(S), and its clip"
    SECOND = "second pass"


def mark(graph: ir.Graph, part: Part) -> None:
    """Every node that has no part yet belongs to this one."""
    for node in graph:
        node.meta.setdefault(_KEY, part)


def parts_of(graph: ir.Graph) -> Mapping[ir.Node, Part]:
    """The part of every node.

    Raises:
        GraphError: Some node has none: not a graph that was built as a two-pass graph.
    """
    if unmarked := [node.name for node in graph if _KEY not in node.meta]:
        raise GraphError(f"not a two-pass graph: {unmarked[0]!r} belongs to none of its parts")
    return {node: node.meta[_KEY] for node in graph}


def part_of(node: ir.Node) -> Part | None:
    """The part of one node; None while it has none."""
    part: Part | None = node.meta.get(_KEY)
    return part


def mark_like(node: ir.Node, other: ir.Node) -> None:
    """A new node belongs where another does."""
    if (part := part_of(other)) is not None:
        node.meta[_KEY] = part
