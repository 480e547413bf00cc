"""Reductions: y = f(x) over some axes; dy, kept at size 1 along them, is broadcast back over x."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from .emitter import Emitter
from .rules import Gradients, attribute, constant_operand, only_first, operand, vjp
from .values import Unsupported, dtype_of, shape_of, static

# Takes the place of a norm of zero: the gradient is then 0, as in PyTorch, and not 0/0.
TINY = 1e-30
TINY_HALF = 6e-8


@vjp("ReduceMean", "ReduceSum", inputs=[0])
def reduce_mean_or_sum(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """Sum: dx = dy, repeated; mean: divided by how many were averaged."""
    x = operand(node, 0)
    axes = _axes(node)
    dx = _kept(b, node, dy)
    if node.op_type == "ReduceMean":
        dx = b.scale(dx, 1.0 / math.prod(static(shape_of(x)[axis]) for axis in axes))
    return only_first(node, b.expand(dx, x))


@vjp("ReduceMax", "ReduceMin", inputs=[0])
def reduce_max_or_min(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """The extreme element takes dy; ties share it evenly, as PyTorch's amax."""
    x, y = operand(node, 0), _kept(b, node, node.outputs[0])
    chosen = b.cast(b.op("Equal", x, y), dy)
    share = b.op("Div", _kept(b, node, dy), b.reduce("ReduceSum", chosen, _axes(node)))
    return only_first(node, b.op("Mul", chosen, share))


@vjp("ReduceL1", inputs=[0])
def reduce_l1(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = Σ|x|, so dx = dy · sign(x)."""
    return only_first(node, b.op("Mul", b.op("Sign", operand(node, 0)), _kept(b, node, dy)))


@vjp("ReduceL2", inputs=[0])
def reduce_l2(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = √Σx², so dx = x · dy/y; 0 where y is 0."""
    y = not_zero(b, _kept(b, node, node.outputs[0]))
    return only_first(node, b.op("Mul", operand(node, 0), b.op("Div", _kept(b, node, dy), y)))


@vjp("ReduceSumSquare", inputs=[0])
def reduce_sum_square(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = Σx², so dx = 2x · dy."""
    return only_first(node, b.op("Mul", operand(node, 0), b.scale(_kept(b, node, dy), 2.0)))


@vjp("ReduceLogSum", inputs=[0])
def reduce_log_sum(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = ln Σx, so dx = dy · e^(−y), repeated."""
    share = b.op("Mul", _kept(b, node, dy), b.op("Exp", b.op("Neg", _kept(b, node, node.outputs[0]))))
    return only_first(node, b.expand(share, operand(node, 0)))


@vjp("ReduceLogSumExp", inputs=[0])
def reduce_log_sum_exp(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = ln Σeˣ, so dx = dy · e^(x − y)."""
    share = b.op("Exp", b.op("Sub", operand(node, 0), _kept(b, node, node.outputs[0])))
    return only_first(node, b.op("Mul", share, _kept(b, node, dy)))


@vjp("ReduceProd", inputs=[0])
def reduce_prod(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx_i = dy · Π_{j≠i} x_j, without dividing by zero.

    With x′ = x where it is not 0, else 1: Π_{j≠i} x_j is Π x′ / x′_i if no other element is 0, else 0.
    """
    x, axes = operand(node, 0), _axes(node)
    is_zero = b.op("Equal", x, b.like(x, 0.0))
    replaced = b.op("Where", is_zero, b.like(x, 1.0), x)
    others = b.op("Div", b.reduce("ReduceProd", replaced, axes), replaced)
    zeros = b.cast(is_zero, dy)
    alone = b.op("Equal", zeros, b.reduce("ReduceSum", zeros, axes))
    return only_first(node, b.masked(b.op("Mul", others, _kept(b, node, dy)), alone))


def not_zero(b: Emitter, norm: ir.Value) -> ir.Value:
    """A norm, with a tiny number in the place of zero."""
    return b.op("Max", norm, b.like(norm, TINY_HALF if dtype_of(norm) == ir.DataType.FLOAT16 else TINY))


def _kept(b: Emitter, node: ir.Node, value: ir.Value) -> ir.Value:
    """The output (or its gradient) with the reduced axes kept at size 1."""
    axes = _axes(node)
    return b.reshape(value, [1 if axis in axes else n for axis, n in enumerate(shape_of(operand(node, 0)))])


def _axes(node: ir.Node) -> Sequence[int]:
    """The reduced axes: an input from opset 13 (sum) or 18 on, an attribute before; all by default."""
    rank = len(shape_of(operand(node, 0)))
    given = constant_operand(node, 1, "axes")
    axes = attribute(node, "axes", ()) if given is None else given.tolist()
    if not axes and not attribute(node, "noop_with_empty_axes", 0):
        axes = range(rank)
    axes = sorted(int(axis) % rank for axis in axes)
    if any(isinstance(shape_of(operand(node, 0))[axis], str) for axis in axes):
        raise Unsupported("it reduces over the batch, and images are differentiated one by one")
    return axes
