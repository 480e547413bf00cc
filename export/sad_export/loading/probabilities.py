"""Logits behind probabilities: a classifier that ends in Softmax, LogSoftmax or Sigmoid is cut before it.

The gradient of a probability is not that of its logit: p·(1 − p) times as large at best, nothing where the
network is sure, and it points elsewhere. So S is taken of z:

1. p = Softmax(z), log p = LogSoftmax(z), over the classes: the logits are z.
2. p = e/Σe with e = Exp(z) or Exp(z − max z), the same written out: the logits are z.
3. p = Sigmoid(z) of one value, two classes, also as (1 − p, p) or (p, 1 − p): the logits are (−z/2, z/2),
   whose softmax is (1 − p, p), or the two in the other order.
4. p = Sigmoid(z) or HardSigmoid(z) of several values: classes that do not exclude each other, which SAD does
   not know. Refused.

Between it and the output may lie what moves elements (Reshape, Flatten, Squeeze, Cast, …), which stays, and
what changes probabilities in order (Log, Exp, Clip, a scale), which goes.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from ..graph.initializers import initializer
from ..graph.nodes import attribute
from ..graph.values import shape_of

_MOVING = frozenset(("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"))
_IN_ORDER = frozenset(("Clip", "Dropout", "Exp", "Log"))
_SCALING = frozenset(("Div", "Mul"))


@dataclasses.dataclass(frozen=True)
class Tail:
    """The end of a graph that turns logits into probabilities.

    Attributes:
        node: The last node of the function itself.
        logits: What it is a function of.
        after: The nodes between it and the output, in order.
        operator: ``Softmax``, ``LogSoftmax``, ``Sigmoid`` or ``HardSigmoid``.
        first: Whether the probability of a ``Sigmoid`` of one value is that of the first class.
    """

    node: ir.Node
    logits: ir.Value
    after: tuple[ir.Node, ...]
    operator: str
    first: bool = False


def find_tail(output: ir.Value) -> Tail | None:
    """The tail that an output comes from, if there is one."""
    after: list[ir.Node] = []
    value = output
    while (node := value.producer()) is not None and node.inputs and node.inputs[0] is not None:
        if node.op_type == "Concat" and (pair := _probability_and_rest(node)) is not None:
            sigmoid, first = pair
            assert sigmoid.inputs[0] is not None
            return Tail(sigmoid, sigmoid.inputs[0], tuple(reversed(after)), "Sigmoid", first)
        if node.op_type in ("Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid"):
            return Tail(node, node.inputs[0], tuple(reversed(after)), node.op_type)
        if node.op_type == "Div" and (written_out := _softmax_written_out(node)) is not None:
            return Tail(node, written_out, tuple(reversed(after)), "Softmax")
        if not (node.op_type in _MOVING | _IN_ORDER or _scales(node)):
            return None
        after.append(node)
        value = node.inputs[0]
    return None


def problem_of(tail: Tail) -> str | None:
    """Why a tail cannot be cut off, if so."""
    shape = shape_of(tail.logits)
    name = f"{tail.operator} {tail.node.name!r}"
    classes = [n for n in shape[1:] if n != 1]
    if tail.operator == "HardSigmoid" and not classes:
        return f"it ends in the {name} of one value, which no logit has"
    if tail.operator in ("Sigmoid", "HardSigmoid"):
        if classes:
            return (
                f"it ends in the {name} of {classes[0]} values: classes that do not exclude each other "
                f"(multi-label), for which SAD is not defined; --logits {tail.logits.name} takes the largest "
                "of them nevertheless"
            )
        return None
    axis = attribute(tail.node, "axis", -1) % len(shape) if tail.node.op_type != "Div" else None
    if axis is not None and (axis == 0 or shape[axis] == 1):
        over = "the images of a batch" if axis == 0 else "an axis of length 1"
        return f"its {name} is taken over {over}, not over the classes"
    return None


def cut(graph: ir.Graph, output: ir.Value, tail: Tail) -> ir.Value:
    """Take a tail off a graph.

    Args:
        graph: Changed in place; nodes that are no longer used stay in it.
        output: The output that the tail was found from.
        tail: What :func:`find_tail` returned for it, and :func:`problem_of` had nothing against.

    Returns:
        The logits, shaped as the output; (N, 2) for the sigmoid of one value.
    """
    value = tail.logits
    for node in tail.after:
        if node.op_type in _MOVING:
            copy = ir.Node(
                node.domain,
                node.op_type,
                [value, *node.inputs[1:]],
                attributes=list(node.attributes.values()),
                name=f"{node.name}/logits",
            )
            moved = node.outputs[0]
            (value,) = copy.outputs
            value.name, value.shape, value.type = f"{moved.name}/logits", moved.shape, moved.type
            graph.insert_before(node, copy)
    if tail.operator == "Sigmoid":
        value = _two_classes(graph, value, first=tail.first)
    return value


def _two_classes(graph: ir.Graph, z: ir.Value, *, first: bool) -> ir.Value:
    """(N, 1), also with more dimensions of length 1 → (−z/2, z/2), or (z/2, −z/2) where p is of the first."""
    dtype, batch = z.dtype, shape_of(z)[0]
    assert dtype is not None
    if len(shape_of(z)) != 2:
        column = ir.Node("", "Reshape", [z, initializer(graph, f"{z.name}/column", np.array([-1, 1]))])
        (flat,) = column.outputs
        flat.name, flat.type, flat.shape = f"{z.name}/as a column", z.type, ir.Shape([batch, 1])
        column.name = f"{z.name}/as a column"
        graph.append(column)
        z = flat
    order = (0.5, -0.5) if first else (-0.5, 0.5)
    halves = initializer(graph, f"{z.name}/halves", np.array([order], dtype=dtype.numpy()))
    node = ir.Node("", "Mul", [z, halves], name=f"{z.name}/two classes")
    (logits,) = node.outputs
    logits.name, logits.type = f"{z.name}/two classes", z.type
    logits.shape = ir.Shape([batch, 2])
    graph.append(node)
    return logits


def _scales(node: ir.Node) -> bool:
    """Whether a node multiplies by one positive number, for example to give percentages."""
    factor = node.inputs[1] if node.op_type in _SCALING and len(node.inputs) == 2 else None
    if factor is None or factor.const_value is None or factor.const_value.size != 1:
        return False
    return bool((factor.const_value.numpy() > 0).all())


def _probability_and_rest(concat: ir.Node) -> tuple[ir.Node, bool] | None:
    """The Sigmoid behind (1 − p, p) or (p, 1 − p), p (N, 1), and whether p comes first."""
    parts = [value.producer() if value is not None else None for value in concat.inputs]
    if len(parts) != 2 or attribute(concat, "axis", 0) not in (1, -1):
        return None
    for first, (p, rest) in ((True, parts), (False, parts[::-1])):
        if p is None or rest is None or p.op_type != "Sigmoid" or rest.op_type != "Sub":
            continue
        one = rest.inputs[0].const_value if rest.inputs[0] is not None else None
        if one is None or not (one.numpy() == 1).all() or rest.inputs[1] is not p.outputs[0]:
            continue
        if shape_of(p.outputs[0])[1:] == (1,):
            return p, first
    return None


def _softmax_written_out(division: ir.Node) -> ir.Value | None:
    """z, where a division is Exp(z)/Σ Exp(z) or the same with z − max z."""
    exponential, total = (value.producer() if value is not None else None for value in division.inputs)
    if exponential is None or exponential.op_type != "Exp":
        return None
    if total is None or total.op_type != "ReduceSum" or total.inputs[0] is not division.inputs[0]:
        return None
    z = exponential.inputs[0]
    shifted = z.producer() if z is not None else None
    if shifted is not None and shifted.op_type == "Sub" and shifted.inputs[1] is not None:
        largest = shifted.inputs[1].producer()
        if largest is not None and largest.op_type == "ReduceMax" and largest.inputs[0] is shifted.inputs[0]:
            return shifted.inputs[0]
    return z
