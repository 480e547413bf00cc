"""The walk: from seeds at the outputs back to one target, node by node, contributions summed.

For y = f_n(… f_1(x)): the gradient of a value is the sum, over the nodes that read it, of what each
node's rule makes of the gradients of its outputs. Visited in reverse topological order, every value's
sum is complete before it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from .emitter import Emitter
from .rules import is_constant, rule_of
from .values import Unsupported

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


def without_rule(
    nodes: Sequence[ir.Node], target: ir.Value, output: ir.Value, *, opset: int
) -> list[tuple[ir.Node, str]]:
    """All nodes between ``target`` and ``output`` that cannot be differentiated, each with the reason.

    Every rule on the path is tried, on an emitter that is thrown away: what passes here can be emitted.
    """
    on_path, needed = dependents(nodes, target), ancestors(nodes, [output])
    scratch = Emitter(opset=opset)
    scratch.wanted = on_path
    missing = []
    for node in nodes:
        carries = [value in on_path and value in needed for value in node.outputs]
        if any(carries) and any(value in on_path for value in node.inputs):
            reason = _reason_against(scratch, node, carries)
            if reason is not None:
                missing.append((node, reason))
    return missing


def _reason_against(scratch: Emitter, node: ir.Node, carries: Sequence[bool]) -> str | None:
    """Why a node on the path cannot be differentiated; ``carries`` says which of its outputs are used."""
    if is_constant(node):
        return None
    registered = rule_of(node)
    if registered is None:
        return f"no gradient rule for {node.domain + '.' if node.domain else ''}{node.op_type}"
    reads = [i for i, value in enumerate(node.inputs) if scratch.wants(value)]
    if other := [i for i in reads if not registered.differentiates(i)]:
        return f"the rule for {node.op_type} does not differentiate input {other[0]}"
    if not registered.quantized and any(_is_integer(node.inputs[i]) for i in reads):
        return f"{node.op_type} of quantised integers"
    gradients = [
        ir.Value(name=f"d{y.name}", shape=y.shape, type=_type_of_gradient(node, y)) if used else None
        for y, used in zip(node.outputs, carries, strict=True)
    ]
    try:
        registered.rule(scratch, node, *gradients)
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
        gradients = [
            b.add(terms, of=y) if (terms := contributions.pop(y, None)) else None for y in node.outputs
        ]
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
