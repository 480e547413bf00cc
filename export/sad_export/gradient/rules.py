"""The registry: which operator has a vector-Jacobian product, and which has none to have.

A rule is a function of the emitter, the forward node and the gradients of the node's outputs (``None``
for an output that nothing used). It returns one gradient per input, ``None`` where there is none::

    @vjp("Relu")
    def relu(b, node, dy):              # dx = dy · 1[y > 0]
        return (b.where_positive(node.outputs[0], dy),)

A rule that cannot take a node raises :class:`Unsupported` with the reason: every rule on the path is tried
before any gradient is kept, so that all reasons are given at once.

Rules know nothing of the walk (:mod:`.reverse`), and the walk nothing of operators.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from .values import Unsupported, constant_array

Gradients = tuple[ir.Value | None, ...]
Rule = Callable[..., Gradients]


@dataclasses.dataclass(frozen=True)
class Registered:
    """One operator's rule.

    Attributes:
        rule: The function.
        inputs: Indices of the inputs it differentiates; ``None`` for all of them.
        quantized: Whether it also takes quantised integers; their gradient is that of the number meant.
    """

    rule: Rule
    inputs: tuple[int, ...] | None
    quantized: bool = False

    def differentiates(self, index: int) -> bool:
        """Whether the rule returns a gradient for input ``index``."""
        return self.inputs is None or index in self.inputs


_RULES: dict[str, Registered] = {}

# Piecewise constant in every float input, or without a float output: the gradient is zero by definition.
_CONSTANT_OPERATORS: set[str] = set()


def vjp(
    *op_types: str,
    inputs: Iterable[int] | None = None,
    quantized: bool = False,
) -> Callable[[Rule], Rule]:
    """Register a rule for operators of the default ONNX domain.

    Args:
        *op_types: Operator names.
        inputs: The inputs that are differentiated, by index; all of them if not given. A graph in which
            the gradient is asked for through another input is refused before any work.
        quantized: The rule also takes quantised integers: it moves elements, or converts from or to them.
    """

    def register(rule: Rule) -> Rule:
        for op_type in op_types:
            if op_type in _RULES:
                raise ValueError(f"{op_type} has two gradient rules: {_RULES[op_type].rule} and {rule}")
            _RULES[op_type] = Registered(rule, None if inputs is None else tuple(inputs), quantized)
        return rule

    return register


def no_gradient(*op_types: str) -> None:
    """Declare operators through which no gradient flows, so that none of them is missing by accident."""
    _CONSTANT_OPERATORS.update(op_types)


def rule_of(node: ir.Node) -> Registered | None:
    """The rule for a node, or ``None``: no rule, or an operator outside the default domain."""
    return _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None


def is_constant(node: ir.Node) -> bool:
    """Whether the operator is declared to have no gradient."""
    return node.domain in ("", "ai.onnx") and node.op_type in _CONSTANT_OPERATORS


def covered() -> list[str]:
    """All operators with a rule, sorted."""
    return sorted(_RULES)


def operand(node: ir.Node, index: int) -> ir.Value:
    """An input that the operator requires."""
    value = node.inputs[index]
    assert value is not None, f"{node.op_type} {node.name!r} lacks its input {index}"
    return value


def constant_operand(node: ir.Node, index: int, what: str) -> np.ndarray[Any, Any] | None:
    """The numbers of an input, ``None`` if it is absent.

    Raises:
        Unsupported: It is computed in the graph.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    if (array := constant_array(value)) is None:
        raise Unsupported(f"its {what} are computed in the graph")
    return array


def only_first(node: ir.Node, gradient: ir.Value | None) -> Gradients:
    """The gradients of an operator of which only the first input has one."""
    return (gradient, *[None] * (len(node.inputs) - 1))


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The one node of the forward graph that reads a value; ``None`` if there are several, or none."""
    # Nodes of an emitter belong to no graph yet.
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
