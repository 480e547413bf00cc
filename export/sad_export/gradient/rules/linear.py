"""Gemm, MatMul and Einsum: y is linear in each operand, and its gradient is a product with the others."""

from __future__ import annotations

import string
from collections.abc import Sequence

import onnx_ir as ir

from ...graph.expression import Expr
from ...graph.nodes import attribute, operand
from ...graph.values import Dim, Unsupported, broadcast, shape_of
from ..registry import Gradient, Gradients, vjp
from ..words import Words


@vjp("Gemm")
def gemm(
    x: Expr,
    w: Expr,
    c: Expr | None = None,
    *,
    dy: Expr,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Gradients:
    """y = α·op(x)·op(W) + β·c: dx = α·dy·op(W)ᵀ, dW = α·op(x)ᵀ·dy, transposed if they were; dc = β·dy."""

    def by_x() -> Expr:
        if transA:
            return w.op("Gemm", dy, alpha=alpha, transA=transB, transB=1, shape=x.shape)
        return dy.op("Gemm", w, alpha=alpha, transB=1 - transB, shape=x.shape)

    def by_w() -> Expr:
        if transB:
            return dy.op("Gemm", x, alpha=alpha, transA=1, transB=transA, shape=w.shape)
        return x.op("Gemm", dy, alpha=alpha, transA=1 - transA, shape=w.shape)

    return by_x, by_w, None if c is None else lambda: dy * beta


@vjp("MatMul")
def matmul(x: Expr, w: Expr, *, dy: Expr, g: Words) -> Gradients:
    """dx = dy·Wᵀ and dW = xᵀ·dy, summed over broadcast batch axes. Attention needs both.

    A vector on the left is a row, on the right a column.
    """
    left, right = x.shape, w.shape
    rows = left if len(left) > 1 else (1, *left)
    columns = right if len(right) > 1 else (*right, 1)
    dy = dy.reshape((*broadcast(rows[:-2], columns[:-2]), rows[-2], columns[-1]))
    return (
        lambda: _summed(g, _product(dy, _swap(w.reshape(columns))), rows).reshape(left),
        lambda: _summed(g, _product(_swap(x.reshape(rows)), dy), columns).reshape(right),
    )


def _swap(value: Expr) -> Expr:
    rank = value.rank
    return value.transpose([*range(rank - 2), rank - 1, rank - 2])


def _product(left: Expr, right: Expr) -> Expr:
    (*batch_left, m, _), (*batch_right, _, n) = left.shape, right.shape
    return left.op("MatMul", right, shape=(*broadcast(batch_left, batch_right), m, n))


def _summed(g: Words, gradient: Expr, shape: Sequence[Dim]) -> Expr:
    """Broadcasting undone towards a shape."""
    return g.sum_to(gradient, g.of(ir.Value(name="", shape=ir.Shape(shape), type=gradient.value.type)))


@vjp("Einsum")
def einsum(*operands: Expr, dy: Expr, g: Words, node: ir.Node) -> Gradients:
    """y = Σ Π x_k: dx_k is the Einsum of dy with the other operands, read out at the indices of x_k.

    An index of x_k that none of them has was summed alone: dx_k is repeated along it.
    """
    terms, result = _subscripts(node)
    sizes = {
        index: n
        for value, term in zip(operands, terms, strict=True)
        for index, n in zip(term, value.shape, strict=True)
    }

    def by(k: int) -> Gradient:
        others = [i for i in range(len(terms)) if i != k]
        read = [result, *(terms[i] for i in others)]
        known = [index for index in terms[k] if any(index in other for other in read)]

        def gradient() -> Expr:
            dx = dy.op(
                "Einsum",
                *(operands[i] for i in others),
                equation=f"{','.join(read)}->{''.join(known)}",
                shape=[sizes[index] for index in known],
            )
            return g.expand(
                dx.reshape([sizes[index] if index in known else 1 for index in terms[k]]), operands[k]
            )

        return gradient

    return tuple(by(k) for k in range(len(terms)))


def _subscripts(node: ir.Node) -> tuple[list[str], str]:
    """The indices of each operand and of the result; an ellipsis gets letters of its own."""
    equation = attribute(node, "equation", "").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    free = [letter for letter in string.ascii_lowercase + string.ascii_uppercase if letter not in equation]
    longest = 0
    batches = set()
    for k, term in enumerate(terms):
        if "..." in term:
            shape = shape_of(operand(node, k))
            count = len(shape) - (len(term) - 3)
            start = term.index("...")
            batches.add(shape[start : start + count])
            longest = max(longest, count)
            terms[k] = term.replace("...", "".join(free[:longest][longest - count :]))
    if len(batches) > 1:
        raise Unsupported(f"the ellipses of {equation!r} broadcast")
    if not arrow:
        letters = sorted(set(left) - set(",."))
        result = ("..." if longest else "") + "".join(i for i in letters if left.count(i) == 1)
    result = result.replace("...", "".join(free[:longest]))
    if any(len(set(term)) < len(term) for term in terms):
        raise Unsupported(f"{equation!r} takes a diagonal")
    return terms, result
