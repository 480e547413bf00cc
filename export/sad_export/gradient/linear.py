"""Gemm, MatMul and Einsum: y is linear in each operand, and its gradient is a product with the others."""

from __future__ import annotations

import string
from collections.abc import Sequence

import onnx_ir as ir

from .emitter import Emitter
from .rules import Gradients, attribute, operand, vjp
from .values import Dim, Unsupported, broadcast, shape_of


@vjp("Gemm")
def gemm(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """Y = α·op(x)·op(W) + β·c: dx = α·dy·op(W)ᵀ, dW = α·op(x)ᵀ·dy, transposed if they were; dc = β·dy."""
    x, weight = operand(node, 0), operand(node, 1)
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    trans_x, trans_w = attribute(node, "transA", 0), attribute(node, "transB", 0)
    gradients: list[ir.Value | None] = [None] * len(node.inputs)
    if b.wants(x):
        if trans_x:
            dx = b.op("Gemm", weight, dy, alpha=alpha, transA=trans_w, transB=1, shape=shape_of(x))
        else:
            dx = b.op("Gemm", dy, weight, alpha=alpha, transB=1 - trans_w, shape=shape_of(x))
        gradients[0] = dx
    if b.wants(weight):
        if trans_w:
            dw = b.op("Gemm", dy, x, alpha=alpha, transA=1, transB=trans_x, shape=shape_of(weight))
        else:
            dw = b.op("Gemm", x, dy, alpha=alpha, transA=1 - trans_x, shape=shape_of(weight))
        gradients[1] = dw
    c = node.inputs[2] if len(node.inputs) > 2 else None
    if c is not None and b.wants(c):
        gradients[2] = b.unbroadcast(b.scale(dy, beta), c)
    return tuple(gradients)


@vjp("MatMul")
def matmul(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy·Wᵀ and dW = xᵀ·dy, summed over broadcast batch axes. Attention needs both.

    A vector on the left is a row, on the right a column.
    """
    x, w = operand(node, 0), operand(node, 1)
    left, right = shape_of(x), shape_of(w)
    rows = left if len(left) > 1 else (1, *left)
    columns = right if len(right) > 1 else (*right, 1)
    dy = b.reshape(dy, (*broadcast(rows[:-2], columns[:-2]), rows[-2], columns[-1]))
    dx = dw = None
    if b.wants(x):
        dx = b.reshape(_summed(b, _product(b, dy, _swap(b, b.reshape(w, columns))), rows), left)
    if b.wants(w):
        dw = b.reshape(_summed(b, _product(b, _swap(b, b.reshape(x, rows)), dy), columns), right)
    return dx, dw


def _swap(b: Emitter, value: ir.Value) -> ir.Value:
    rank = len(shape_of(value))
    return b.transpose(value, [*range(rank - 2), rank - 1, rank - 2])


def _product(b: Emitter, left: ir.Value, right: ir.Value) -> ir.Value:
    (*batch_left, m, _), (*batch_right, _, n) = shape_of(left), shape_of(right)
    return b.op("MatMul", left, right, shape=(*broadcast(batch_left, batch_right), m, n))


def _summed(b: Emitter, gradient: ir.Value, shape: Sequence[Dim]) -> ir.Value:
    """Broadcasting undone towards a shape."""
    return b.unbroadcast(gradient, ir.Value(name="", shape=ir.Shape(shape), type=gradient.type))


@vjp("Einsum")
def einsum(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = Σ Π x_k: dx_k is the Einsum of dy with the other operands, read out at the indices of x_k.

    An index of x_k that none of them has was summed alone: dx_k is repeated along it.
    """
    terms, result = _subscripts(node)
    sizes = {
        index: n
        for k, term in enumerate(terms)
        for index, n in zip(term, shape_of(operand(node, k)), strict=True)
    }
    gradients: list[ir.Value | None] = []
    for k, (value, term) in enumerate(zip(node.inputs, terms, strict=True)):
        if value is None or not b.wants(value):
            gradients.append(None)
            continue
        others = [i for i in range(len(terms)) if i != k]
        read = [result, *(terms[i] for i in others)]
        known = [index for index in term if any(index in other for other in read)]
        dx = b.op(
            "Einsum",
            dy,
            *(node.inputs[i] for i in others),
            equation=f"{','.join(read)}->{''.join(known)}",
            shape=[sizes[index] for index in known],
        )
        dx = b.reshape(dx, [sizes[index] if index in known else 1 for index in term])
        gradients.append(b.expand(dx, value))
    return tuple(gradients)


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
