"""Gemm and MatMul: y = x·W, so dx = dy·Wᵀ."""

from __future__ import annotations

import onnx_ir as ir

from .emitter import Dim, Emitter, shape_of
from .rules import Gradients, attribute, operand, vjp


@vjp("Gemm", inputs=[0, 2])
def gemm(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """Y = α·op(x)·op(W) + β·c: dx = α·dy·op(W)ᵀ, transposed if x was; dc = β·dy."""
    x, weight = operand(node, 0), operand(node, 1)
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    trans_x, trans_w = attribute(node, "transA", 0), attribute(node, "transB", 0)
    if trans_x:
        dx = b.op("Gemm", weight, dy, alpha=alpha, transA=trans_w, transB=1, shape=shape_of(x))
    else:
        dx = b.op("Gemm", dy, weight, alpha=alpha, transB=1 - trans_w, shape=shape_of(x))
    if len(node.inputs) < 3:
        return dx, None
    c = node.inputs[2]
    return dx, None, b.unbroadcast(b.scale(dy, beta), c) if c is not None and b.wants(c) else None


@vjp("MatMul", refuses=lambda node: _refuse_vectors(node))
def matmul(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy·Wᵀ and dW = xᵀ·dy, summed over broadcast batch axes. Attention needs both."""
    x, w = operand(node, 0), operand(node, 1)
    dx = dw = None
    if b.wants(x):
        dx = b.unbroadcast(_product(b, dy, _swap(b, w)), x)
    if b.wants(w):
        dw = b.unbroadcast(_product(b, _swap(b, x), dy), w)
    return dx, dw


def _refuse_vectors(node: ir.Node) -> str | None:
    ranks = [len(value.shape) for value in node.inputs if value is not None and value.shape is not None]
    return "MatMul with a vector (rank 1)" if 1 in ranks else None


def _swap(b: Emitter, value: ir.Value) -> ir.Value:
    rank = len(shape_of(value))
    return b.transpose(value, [*range(rank - 2), rank - 1, rank - 2])


def _product(b: Emitter, left: ir.Value, right: ir.Value) -> ir.Value:
    (*batch_left, m, _), (*batch_right, _, n) = shape_of(left), shape_of(right)
    longest = max(len(batch_left), len(batch_right))
    batch: list[Dim] = []
    for p, q in zip(_aligned(batch_left, longest), _aligned(batch_right, longest), strict=True):
        batch.append(q if p == 1 else p)
    return b.op("MatMul", left, right, shape=(*batch, m, n))


def _aligned(batch: list[Dim], length: int) -> list[Dim]:
    return [1] * (length - len(batch)) + batch
