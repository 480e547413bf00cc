"""The walk: from seeds at the outputs back to one target, node by node, contributions summed.

For y = f_n(… f_1(x)): the gradient of a value is the sum, over the nodes that read it, of what each
node's rule makes of the gradients of its outputs. Visited in reverse topological order, every value's
sum is complete before it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

import onnx_ir as ir

from ..graph.expression import Expr
from ..graph.values import Unsupported
from .registry import Rule, is_constant, rule_for, rule_of
from .words import Words

# What QuantizeLinear makes; other integers are counts and indices, which have no gradient.
_QUANTIZED = frozenset(
    (
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.INT16,
        ir.DataType.UINT16,
        ir.DataType.INT4,
        ir.DataType.UINT4,
    )
)


def dependents(nodes: Iterable[ir.Node], target: ir.Value) -> set[ir.Value]:
    """The values that depend on ``target`` through differentiable operators, and ``target``.

    Floats, and the integers between QuantizeLinear and DequantizeLinear.
    """
    on_path = {target}
    for node in nodes:
        if not is_constant(node) and any(value in on_path for value in node.inputs if value is not None):
            on_path.update(value for value in node.outputs if _has_gradient(node, value))
    return on_path


def _has_gradient(node: ir.Node, value: ir.Value) -> bool:
    if value.dtype is None or value.dtype.is_floating_point():
        return True
    registered = rule_of(node)
    return registered is not None and registered.quantized and value.dtype in _QUANTIZED


def ancestors(nodes: Sequence[ir.Node], outputs: Iterable[ir.Value]) -> set[ir.Value]:
    """The values that ``outputs`` are computed from, and ``outputs``."""
    needed = set(outputs)
    for node in reversed(nodes):
        if any(value in needed for value in node.outputs):
            needed.update(value for value in node.inputs if value is not None)
    return needed


def stopping(nodes: Sequence[ir.Node], target: ir.Value, output: ir.Value) -> list[ir.Node]:
    """The nodes between ``target`` and ``output`` at which the gradient ends: piecewise constant ones."""
    on_path, needed = dependents(nodes, target), ancestors(nodes, [output])
    return [
        node
        for node in nodes
        if any(value in on_path for value in node.inputs)
        and any(value in needed for value in node.outputs)
        and not any(value in on_path for value in node.outputs)
    ]


def without_rule(
    scratch: Words, nodes: Sequence[ir.Node], target: ir.Value, output: ir.Value
) -> list[tuple[ir.Node, str]]:
    """All nodes between ``target`` and ``output`` that cannot be differentiated, each with the reason.

    Every rule on the path is tried: what passes here can be written.

    Args:
        scratch: Where nodes are tried; to be thrown away.
        nodes: The forward graph in topological order.
        target: The value differentiated with respect to.
        output: Where the gradient comes from.
    """
    on_path, needed = dependents(nodes, target), ancestors(nodes, [output])
    missing = []
    for node in nodes:
        carries = [value in on_path and value in needed for value in node.outputs]
        if any(carries) and any(value in on_path for value in node.inputs):
            reason = _reason_against(scratch, node, carries, on_path)
            if reason is not None:
                missing.append((node, reason))
    return missing


def _reason_against(
    scratch: Words, node: ir.Node, carries: Sequence[bool], on_path: Set[ir.Value]
) -> str | None:
    """Why a node on the path cannot be differentiated; ``carries`` says which of its outputs are used."""
    if is_constant(node):
        return None
    rule = rule_of(node)
    if rule is None:
        return f"no gradient rule for {node.domain + '.' if node.domain else ''}{node.op_type}"
    reads = [i for i, value in enumerate(node.inputs) if value in on_path]
    if other := [i for i in reads if not rule.differentiates(i)]:
        return f"the rule for {node.op_type} does not differentiate input {other[0]}"
    if not rule.quantized and any(_is_integer(node.inputs[i]) for i in reads):
        return f"{node.op_type} of quantised integers"
    dys = [
        scratch.of(ir.Value(name=f"d{y.name}", shape=y.shape, type=_type_of_gradient(node, y)))
        if used
        else None
        for y, used in zip(node.outputs, carries, strict=True)
    ]
    try:
        for _ in _gradients(scratch, rule, node.inputs, dys, on_path, node):
            pass
    except Unsupported as reason:
        return f"{node.op_type}: {reason}"
    return None


def _is_integer(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and not value.dtype.is_floating_point()


def _type_of_gradient(node: ir.Node, output: ir.Value) -> ir.TypeProtocol | None:
    if not _is_integer(output):
        return output.type
    source = node.inputs[0]
    return ir.TensorType(ir.DataType.FLOAT) if source is None or _is_integer(source) else source.type


def reverse(g: Words, nodes: Sequence[ir.Node], seeds: Mapping[ir.Value, Expr], target: ir.Value) -> ir.Value:
    """Write the gradient of the seeded values with respect to ``target``.

    Args:
        g: Where backward nodes go.
        nodes: The forward graph in topological order, checked by :func:`without_rule`.
        seeds: Forward value → its gradient, where the walk starts.
        target: The value differentiated with respect to.

    Returns:
        The gradient, of ``target``'s shape.
    """
    on_path = dependents(nodes, target)
    contributions: dict[ir.Value, list[Expr]] = {value: [seed] for value, seed in seeds.items()}
    for node in reversed(nodes):
        if not any(value in contributions for value in node.outputs):
            continue
        if is_constant(node) or not any(value in on_path for value in node.inputs):
            continue
        dys = [
            g.sum_terms(terms, of=g.of(y)) if (terms := contributions.pop(y, None)) else None
            for y in node.outputs
        ]
        found = rule_for(node, target=target)
        assert found is not None, f"{node.name} passed the check without a rule"
        for value, gradient in _gradients(g, *found, dys=dys, on_path=on_path, node=node):
            contributions.setdefault(value, []).append(gradient)
    return g.sum_terms(contributions[target]).value


def _gradients(
    g: Words,
    rule: Rule,
    inputs: Sequence[ir.Value | None],
    dys: Sequence[Expr | None],
    on_path: Set[ir.Value],
    node: ir.Node,
) -> Iterator[tuple[ir.Value, Expr]]:
    """The inputs that the walk goes on from, and their gradients, with broadcasting undone."""
    gradients = rule.apply(g, node, inputs, dys)
    for value, gradient in zip(inputs, gradients, strict=True):
        if value is None or value not in on_path or gradient is None:
            continue
        written = gradient() if callable(gradient) else gradient
        yield value, written if written.value.shape == value.shape else g.sum_to(written, g.of(value))
