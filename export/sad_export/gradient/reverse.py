"""The walk: from seeds at the outputs back to one target, node by node, contributions summed.

For y = f_n(… f_1(x)): the gradient of a value is the sum, over the nodes that read it, of what each
node's rule makes of the gradients of its outputs. Visited in reverse topological order, every value's
sum is complete before it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from .emitter import Emitter, dtype_of
from .rules import is_constant, rule_of


def dependents(nodes: Iterable[ir.Node], target: ir.Value) -> set[ir.Value]:
    """The float values that depend on ``target`` through differentiable operators, and ``target``."""
    on_path = {target}
    for node in nodes:
        if not is_constant(node) and any(value in on_path for value in node.inputs if value is not None):
            on_path.update(
                value for value in node.outputs if value.dtype is None or dtype_of(value).is_floating_point()
            )
    return on_path


def ancestors(nodes: Sequence[ir.Node], outputs: Iterable[ir.Value]) -> set[ir.Value]:
    """The values that ``outputs`` are computed from, and ``outputs``."""
    needed = set(outputs)
    for node in reversed(nodes):
        if any(value in needed for value in node.outputs):
            needed.update(value for value in node.inputs if value is not None)
    return needed


def without_rule(nodes: Sequence[ir.Node], target: ir.Value, output: ir.Value) -> list[tuple[ir.Node, str]]:
    """All nodes between ``target`` and ``output`` that cannot be differentiated, each with the reason."""
    on_path, needed = dependents(nodes, target), ancestors(nodes, [output])
    missing = []
    for node in nodes:
        reads = [i for i, value in enumerate(node.inputs) if value in on_path]
        if not reads or is_constant(node) or not any(value in needed for value in node.outputs):
            continue
        registered = rule_of(node)
        if registered is None:
            missing.append(
                (node, f"no gradient rule for {node.domain + '.' if node.domain else ''}{node.op_type}")
            )
        elif other := [i for i in reads if not registered.differentiates(i)]:
            missing.append((node, f"the rule for {node.op_type} does not differentiate input {other[0]}"))
        elif reason := registered.refuses(node):
            missing.append((node, reason))
    return missing


def reverse(
    b: Emitter, nodes: Sequence[ir.Node], seeds: Mapping[ir.Value, ir.Value], target: ir.Value
) -> ir.Value:
    """Emit the gradient of the seeded values with respect to ``target``.

    Args:
        b: Where backward nodes go.
        nodes: The forward graph in topological order, checked by :func:`without_rule`.
        seeds: Forward value → its gradient, where the walk starts.
        target: The value differentiated with respect to.

    Returns:
        The gradient, of ``target``'s shape.
    """
    b.wanted = dependents(nodes, target)
    contributions: dict[ir.Value, list[ir.Value]] = {value: [seed] for value, seed in seeds.items()}
    for node in reversed(nodes):
        if not any(value in contributions for value in node.outputs):
            continue
        if is_constant(node) or not any(b.wants(value) for value in node.inputs):
            continue
        gradients = [b.add(terms) if (terms := contributions.pop(y, None)) else None for y in node.outputs]
        registered = rule_of(node)
        assert registered is not None, f"{node.name} passed the check without a rule"
        results = registered.rule(b, node, *gradients)
        assert len(results) == len(node.inputs), (
            f"the rule for {node.op_type} must return one gradient per input"
        )
        for value, gradient in zip(node.inputs, results, strict=True):
            if value is not None and b.wants(value) and gradient is not None:
                contributions.setdefault(value, []).append(gradient)
    return b.add(contributions[target])
