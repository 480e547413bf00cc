"""Reading and writing at indices that vary within the image, and may be computed."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from .emitter import Emitter
from .rules import Gradients, attribute, constant_operand, only_first, operand, vjp
from .shape import gather_transposed
from .values import Dim, Unsupported, shape_of, static


@vjp("GatherElements", inputs=[0])
def gather_elements(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y[k] = x[i_k] along one axis: dx[p] = Σ_k dy[k] · 1[i_k = p].

    A comparison of all k with all p: several reads may meet in one place, and TensorRT's ScatterElements
    cannot add.
    """
    x, indices = operand(node, 0), operand(node, 1)
    rank = len(shape_of(x))
    axis = attribute(node, "axis", 0) % rank
    if any(m != n for i, (m, n) in enumerate(zip(shape_of(x), shape_of(indices), strict=True)) if i != axis):
        raise Unsupported("it reads from a part of its input")
    size = static(shape_of(x)[axis])
    column = [*shape_of(indices)[: axis + 1], 1, *shape_of(indices)[axis + 1 :]]
    positions = np.arange(size, dtype=np.int64).reshape(size, *[1] * (rank - 1 - axis))
    if indices.dtype != ir.DataType.INT64:
        indices = b.op("Cast", indices, dtype=ir.DataType.INT64, to=int(ir.DataType.INT64))
    indices = b.reshape(indices, column)
    # An index may count from the end.
    chosen = b.op("Equal", indices, b.constant(positions))
    chosen = b.op("Or", chosen, b.op("Equal", indices, b.constant(positions - size)))
    spread = b.op("Mul", b.cast(chosen, dy), b.reshape(dy, column))
    return only_first(node, b.reshape(b.reduce("ReduceSum", spread, [axis]), shape_of(x)))


@vjp("GatherND", inputs=[0])
def gather_nd(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x[i], constant index vectors over the first axes of x: a Gather over those axes flattened.

    PyTorch's adaptive pools export to it where the windows are unequal.
    """
    if attribute(node, "batch_dims", 0):
        raise Unsupported("it has batch_dims")
    x = operand(node, 0)
    indices = constant_operand(node, 1, "indices")
    assert indices is not None
    count = indices.shape[-1]
    leading = [static(n) for n in shape_of(x)[:count]]
    rest = shape_of(x)[count:]
    # Everything behind is one column, whatever the batch in it.
    width: Dim = "rest" if any(isinstance(n, str) for n in rest) else math.prod(static(n) for n in rest)
    vectors = indices.reshape(-1, count) % leading
    positions = np.ravel_multi_index(tuple(vectors.T), tuple(leading)).tolist()
    columns = b.reshape(dy, (len(positions), width))
    dx = gather_transposed(b, columns, 0, positions, math.prod(leading))
    return only_first(node, b.reshape(dx, shape_of(x)))


@vjp("ScatterElements", "Scatter", inputs=[0, 2])
def scatter_elements(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x with updates written along one axis: dx is dy with zeros there, dupdates is dy there."""
    _refuse_reduction(node)
    indices, updates = operand(node, 1), operand(node, 2)
    axis = attribute(node, "axis", 0)
    dx = du = None
    if b.wants(node.inputs[0]):
        dx = b.op("ScatterElements", dy, indices, _zeros(b, updates), axis=axis)
    if b.wants(updates):
        du = b.op("GatherElements", dy, indices, axis=axis, shape=shape_of(updates))
    return dx, None, du


@vjp("ScatterND", inputs=[0, 2])
def scatter_nd(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x with updates written at index vectors: dx is dy with zeros there, dupdates is dy there."""
    _refuse_reduction(node)
    indices, updates = operand(node, 1), operand(node, 2)
    dx = du = None
    if b.wants(node.inputs[0]):
        dx = b.op("ScatterND", dy, indices, _zeros(b, updates))
    if b.wants(updates):
        du = b.op("GatherND", dy, indices, shape=shape_of(updates))
    return dx, None, du


def _refuse_reduction(node: ir.Node) -> None:
    if (reduction := attribute(node, "reduction", "none")) != "none":
        raise Unsupported(f"its reduction is {reduction!r}")


def _zeros(b: Emitter, value: ir.Value) -> ir.Value:
    """Zeros of a value's shape, whatever the batch."""
    return b.op("Mul", value, b.like(value, 0.0))
