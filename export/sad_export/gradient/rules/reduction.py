"""Reductions: y = f(x) over some axes; dy, kept at size 1 along them, is broadcast back over x."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from ...graph.expression import Expr
from ...graph.functions import equal, exp, maximum, sign, where
from ...graph.nodes import attribute
from ...graph.values import Unsupported, static
from ..registry import Gradient, vjp
from ..words import Words

# Takes the place of a norm of zero: the gradient is then 0, as in PyTorch, and not 0/0.
TINY = 1e-30
TINY_HALF = 6e-8


@vjp("ReduceSum", inputs=[0])
def reduce_sum(x: Expr, axes: Expr | None = None, *, dy: Expr, g: Words, node: ir.Node) -> Gradient:
    """dx = dy, repeated."""
    return g.expand(_kept(dy, x, _axes(node, x, axes)), x)


@vjp("ReduceMean", inputs=[0])
def reduce_mean(x: Expr, axes: Expr | None = None, *, dy: Expr, g: Words, node: ir.Node) -> Gradient:
    """dx = dy / n, repeated, for n averaged elements."""
    along = _axes(node, x, axes)
    share = 1.0 / math.prod(static(x.shape[axis]) for axis in along)
    return g.expand(_kept(dy, x, along) * share, x)


@vjp("ReduceMax", "ReduceMin", inputs=[0])
def reduce_max_or_min(x: Expr, axes: Expr | None = None, *, y: Expr, dy: Expr, node: ir.Node) -> Gradient:
    """The extreme element takes dy; ties share it evenly, as PyTorch's amax."""
    along = _axes(node, x, axes)
    chosen = equal(x, _kept(y, x, along)).cast(dy)
    return chosen * (_kept(dy, x, along) / chosen.sum(along))


@vjp("ReduceL1", inputs=[0])
def reduce_l1(x: Expr, axes: Expr | None = None, *, dy: Expr, node: ir.Node) -> Gradient:
    """y = Σ|x|, so dx = dy · sign(x)."""
    return sign(x) * _kept(dy, x, _axes(node, x, axes))


@vjp("ReduceL2", inputs=[0])
def reduce_l2(x: Expr, axes: Expr | None = None, *, y: Expr, dy: Expr, node: ir.Node) -> Gradient:
    """y = √Σx², so dx = x · dy/y; 0 where y is 0."""
    along = _axes(node, x, axes)
    return x * (_kept(dy, x, along) / not_zero(_kept(y, x, along)))


@vjp("ReduceSumSquare", inputs=[0])
def reduce_sum_square(x: Expr, axes: Expr | None = None, *, dy: Expr, node: ir.Node) -> Gradient:
    """y = Σx², so dx = 2x · dy."""
    return x * (_kept(dy, x, _axes(node, x, axes)) * 2.0)


@vjp("ReduceLogSum", inputs=[0])
def reduce_log_sum(
    x: Expr, axes: Expr | None = None, *, y: Expr, dy: Expr, g: Words, node: ir.Node
) -> Gradient:
    """y = ln Σx, so dx = dy · e^(−y), repeated."""
    along = _axes(node, x, axes)
    return g.expand(_kept(dy, x, along) * exp(-_kept(y, x, along)), x)


@vjp("ReduceLogSumExp", inputs=[0])
def reduce_log_sum_exp(x: Expr, axes: Expr | None = None, *, y: Expr, dy: Expr, node: ir.Node) -> Gradient:
    """y = ln Σeˣ, so dx = dy · e^(x − y)."""
    along = _axes(node, x, axes)
    return exp(x - _kept(y, x, along)) * _kept(dy, x, along)


@vjp("ReduceProd", inputs=[0])
def reduce_prod(x: Expr, axes: Expr | None = None, *, dy: Expr, node: ir.Node) -> Gradient:
    """dx_i = dy · Π_{j≠i} x_j, without dividing by zero.

    With x′ = x where it is not 0, else 1: Π_{j≠i} x_j is Π x′ / x′_i if no other element is 0, else 0.
    """
    along = _axes(node, x, axes)
    is_zero = equal(x, 0.0)
    replaced = where(is_zero, x.like(1.0), x)
    others = replaced.reduce("ReduceProd", along) / replaced
    zeros = is_zero.cast(dy)
    alone = equal(zeros, zeros.sum(along))
    return others * _kept(dy, x, along) * alone


def not_zero(norm: Expr) -> Expr:
    """A norm, with a tiny number in the place of zero."""
    return maximum(norm, TINY_HALF if norm.dtype == ir.DataType.FLOAT16 else TINY)


def _kept(value: Expr, x: Expr, axes: Sequence[int]) -> Expr:
    """The output (or its gradient) with the reduced axes kept at size 1."""
    return value.reshape([1 if axis in axes else n for axis, n in enumerate(x.shape)])


def _axes(node: ir.Node, x: Expr, given: Expr | None) -> Sequence[int]:
    """The reduced axes: an input from opset 13 (sum) or 18 on, an attribute before; all by default."""
    axes = attribute(node, "axes", ()) if given is None else given.known("axes").tolist()
    if not axes and not attribute(node, "noop_with_empty_axes", 0):
        axes = range(x.rank)
    axes = sorted(int(axis) % x.rank for axis in axes)
    if any(isinstance(x.shape[axis], str) for axis in axes):
        raise Unsupported("it reduces over the batch, and images are differentiated one by one")
    return axes
