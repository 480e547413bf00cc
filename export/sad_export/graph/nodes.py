"""What may be asked of a node of a graph."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir


def operand(node: ir.Node, index: int) -> ir.Value:
    """An input that the operator requires."""
    value = node.inputs[index]
    assert value is not None, f"{node.op_type} {node.name!r} lacks its input {index}"
    return value


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The one node of the graph that reads a value; ``None`` if there are several, or none."""
    # Nodes that are being written belong to no graph yet.
    readers = [use.node for use in value.uses() if use.node.graph is not None]
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's value, or the operator's default."""
    found = node.attributes.get(name)
    if found is None:
        return default
    value = found.value
    if isinstance(value, ir.TensorProtocol):
        return value.numpy()
    return tuple(value) if isinstance(value, (list, tuple)) else value
