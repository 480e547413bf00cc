"""Reading and writing at indices that vary within the image, and may be computed."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ...graph.expression import Expr
from ...graph.functions import equal
from ...graph.values import Dim, Unsupported, static
from ..registry import Gradient, Gradients, vjp
from ..words import Words
from .shape import gather_transposed


@vjp("GatherElements", inputs=[0])
def gather_elements(x: Expr, indices: Expr, *, dy: Expr, g: Words, axis: int = 0) -> Gradient:
    """y[k] = x[i_k] along one axis: dx[p] = Σ_k dy[k] · 1[i_k = p].

    A comparison of all k with all p: several reads may meet in one place, and TensorRT's ScatterElements
    cannot add.
    """
    axis = axis % x.rank
    if any(m != n for i, (m, n) in enumerate(zip(x.shape, indices.shape, strict=True)) if i != axis):
        raise Unsupported("it reads from a part of its input")
    size = static(x.shape[axis])
    column = [*indices.shape[: axis + 1], 1, *indices.shape[axis + 1 :]]
    positions = np.arange(size, dtype=np.int64).reshape(size, *[1] * (x.rank - 1 - axis))
    if indices.dtype != ir.DataType.INT64:
        indices = indices.op("Cast", dtype=ir.DataType.INT64, to=int(ir.DataType.INT64))
    indices = indices.reshape(column)
    # An index may count from the end.
    chosen = equal(indices, g.constant(positions))
    chosen = chosen | equal(indices, g.constant(positions - size))
    return (chosen.cast(dy) * dy.reshape(column)).sum([axis]).reshape(x.shape)


@vjp("GatherND", inputs=[0])
def gather_nd(x: Expr, indices: Expr, *, dy: Expr, g: Words, batch_dims: int = 0) -> Gradient:
    """y = x[i], constant index vectors over the first axes of x: a Gather over those axes flattened.

    PyTorch's adaptive pools export to it where the windows are unequal.
    """
    if batch_dims:
        raise Unsupported("it has batch_dims")
    known = indices.known("indices")
    count = known.shape[-1]
    leading = [static(n) for n in x.shape[:count]]
    rest = x.shape[count:]
    # Everything behind is one column, whatever the batch in it.
    width: Dim = "rest" if any(isinstance(n, str) for n in rest) else math.prod(static(n) for n in rest)
    vectors = known.reshape(-1, count) % leading
    positions = np.ravel_multi_index(tuple(vectors.T), tuple(leading)).tolist()
    columns = dy.reshape((len(positions), width))
    return gather_transposed(g, columns, 0, positions, math.prod(leading)).reshape(x.shape)


@vjp("ScatterElements", "Scatter", inputs=[0, 2])
def scatter_elements(
    x: Expr, indices: Expr, updates: Expr, *, dy: Expr, axis: int = 0, reduction: str = "none"
) -> Gradients:
    """y = x with updates written along one axis: dx is dy with zeros there, dupdates is dy there."""
    _refuse(reduction)
    return (
        lambda: dy.op("ScatterElements", indices, updates * 0.0, axis=axis),
        None,
        lambda: dy.op("GatherElements", indices, axis=axis, shape=updates.shape),
    )


@vjp("ScatterND", inputs=[0, 2])
def scatter_nd(x: Expr, indices: Expr, updates: Expr, *, dy: Expr, reduction: str = "none") -> Gradients:
    """y = x with updates written at index vectors: dx is dy with zeros there, dupdates is dy there."""
    _refuse(reduction)
    return (
        lambda: dy.op("ScatterND", indices, updates * 0.0),
        None,
        lambda: dy.op("GatherND", indices, shape=updates.shape),
    )


def _refuse(reduction: str) -> None:
    if reduction != "none":
        raise Unsupported(f"its reduction is {reduction!r}")
