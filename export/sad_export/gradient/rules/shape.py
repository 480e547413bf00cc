"""Operators that move elements without changing them: the gradient moves them back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...graph.expression import Expr
from ...graph.values import Dim, Unsupported, static
from ..registry import Gradient, Gradients, vjp
from ..words import Words


@vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze", inputs=[0], quantized=True)
def reshape(x: Expr, *, dy: Expr) -> Gradient:
    """dx = dy in x's shape."""
    return dy.reshape(x.shape)


@vjp("Transpose", quantized=True)
def transpose(x: Expr, *, dy: Expr, perm: Sequence[int] | None = None) -> Gradient:
    """The inverse permutation."""
    order = tuple(reversed(range(dy.rank))) if perm is None else perm
    return dy.transpose([int(axis) for axis in np.argsort(order)])


@vjp("Expand", inputs=[0])
def expand(x: Expr, *, dy: Expr) -> Gradient:
    """dx = dy; the walk sums over what was repeated."""
    return dy


@vjp("Tile", inputs=[0])
def tile(x: Expr, repeats: Expr, *, dy: Expr) -> Gradient:
    """dx = dy, summed over the copies: each axis is split into (copies, length)."""
    split: list[Dim] = []
    copies = []
    for n, times in zip(x.shape, repeats.known("repeats").tolist(), strict=True):
        if times != 1:
            copies.append(len(split))
            split.append(times)
            static(n)
        split.append(n)
    return dy.reshape(split).sum(copies).reshape(x.shape) if copies else dy


@vjp("Concat", quantized=True)
def concat(*parts: Expr, dy: Expr, axis: int = 0) -> Gradients:
    """Each input gets its own slice of dy."""
    axis = axis % dy.rank
    gradients = []
    start = 0
    for part in parts:
        end = start + static(part.shape[axis])
        gradients.append(_slice(dy, axis, start, end))
        start = end
    return tuple(gradients)


def _slice(dy: Expr, axis: int, start: int, end: int) -> Gradient:
    return lambda: dy.slice([axis], [start], [end])


@vjp("Split", inputs=[0], quantized=True)
def split(x: Expr, *, ys: Sequence[Expr], dys: Sequence[Expr | None], axis: int = 0) -> Gradient:
    """dx is the concatenation of the parts' gradients, zero for parts that nothing used."""
    axis = axis % x.rank
    parts: list[Expr] = []
    unused = 0
    for y, dy in zip(ys, dys, strict=True):
        size = static(y.shape[axis])
        if dy is not None:
            parts.append(dy.pad([axis], [0 if parts else unused], [0]))
            unused = 0
        elif parts:
            parts[-1] = parts[-1].pad([axis], [0], [size])
        else:
            unused += size
    first, *rest = parts
    return first.op("Concat", *rest, axis=axis, shape=x.shape) if rest else first


@vjp("DepthToSpace", quantized=True)
def depth_to_space(x: Expr, *, dy: Expr, blocksize: int = 1, mode: str = "DCR") -> Gradient:
    """The blocks go back into the channels: SpaceToDepth for DCR, channels before blocks for CRD."""
    if mode == "DCR":
        return dy.op("SpaceToDepth", blocksize=blocksize, shape=x.shape)
    return _blocks_to_channels(dy, blocksize, [0, 1, 3, 5, 2, 4])


@vjp("SpaceToDepth", quantized=True)
def space_to_depth(x: Expr, *, dy: Expr, blocksize: int = 1, mode: str = "DCR") -> Gradient:
    """DepthToSpace in the same mode; before opset 28 there is only DCR."""
    return dy.op("DepthToSpace", blocksize=blocksize, mode=mode, shape=x.shape)


def _blocks_to_channels(value: Expr, size: int, perm: Sequence[int]) -> Expr:
    """(N, C, H·s, W·s) → (N, C·s², H, W), the axes (N, C, H, s, W, s) in the order ``perm``."""
    n, c, h, w = value.shape
    channels, height, width = static(c), static(h) // size, static(w) // size
    value = value.reshape((n, channels, height, size, width, size)).transpose(perm)
    return value.reshape((n, channels * size * size, height, width))


@vjp("Pad", inputs=[0])
def pad(
    x: Expr,
    pads: Expr,
    fill: Expr | None = None,
    axes: Expr | None = None,
    *,
    dy: Expr,
    g: Words,
    mode: str = "constant",
) -> Gradient:
    """dx is dy without the border; what the border repeats of x (edge, reflect, wrap) is added to it.

    Negative padding crops, and leaves zeros there.
    """
    padded, begins, ends = _pads(x, pads, axes)
    if mode == "constant":
        return dy.pad(padded, [-n for n in begins], [-n for n in ends])
    for axis, begin, end in zip(padded, begins, ends, strict=True):
        size = static(x.shape[axis])
        # What NumPy repeats on the positions is what the operator repeats on the image.
        positions = np.arange(max(0, -begin), size - max(0, -end))
        border = (max(0, begin), max(0, end))
        repeated = np.pad(positions, border, mode=mode)  # type: ignore[call-overload]
        dy = gather_transposed(g, dy, axis, repeated.tolist(), size)
    return dy


def _pads(x: Expr, pads: Expr, axes: Expr | None) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    given = pads.known("pads")
    chosen = list(range(x.rank)) if axes is None else [int(axis) % x.rank for axis in axes.known("axes")]
    amounts = {
        axis: (int(begin), int(end))
        for axis, begin, end in zip(chosen, given, given[len(chosen) :], strict=False)
    }
    used = [axis for axis in chosen if amounts[axis] != (0, 0)]
    return used, [amounts[axis][0] for axis in used], [amounts[axis][1] for axis in used]


@vjp("Slice", inputs=[0], quantized=True)
def slice_(
    x: Expr,
    starts: Expr,
    ends: Expr,
    axes: Expr | None = None,
    steps: Expr | None = None,
    *,
    dy: Expr,
    g: Words,
) -> Gradient:
    """dx is dy at the positions that were read, and zero elsewhere."""
    first, last = starts.known("starts").tolist(), ends.known("ends").tolist()
    along = range(len(first)) if axes is None else axes.known("axes").tolist()
    strides = [1] * len(first) if steps is None else steps.known("steps").tolist()
    for start, end, axis, step in zip(first, last, along, strides, strict=True):
        axis = axis % x.rank
        size = x.shape[axis]
        if isinstance(size, str):
            if start == 0 and end >= 2**31 - 1 and step == 1:
                continue
            raise Unsupported("it slices the batch, and images are differentiated one by one")
        # A slice of Python counts as the operator does, but for a negative end that stays out of range.
        stop = None if step < 0 and end < -size else end
        dy = gather_transposed(g, dy, axis, list(range(size))[start:stop:step], size)
    return dy


@vjp("Gather", inputs=[0])
def gather(x: Expr, indices: Expr, *, dy: Expr, g: Words, axis: int = 0) -> Gradient:
    """dx is dy summed at the positions that were read, and zero elsewhere; the indices are constant."""
    axis = axis % x.rank
    known = indices.known("indices")
    size = static(x.shape[axis])
    line = [*x.shape[:axis], known.size, *x.shape[axis + 1 :]]
    positions = (known.reshape(-1) % size).tolist()
    return gather_transposed(g, dy.reshape(line), axis, positions, size)


def gather_transposed(g: Words, dy: Expr, axis: int, positions: Sequence[int], size: int) -> Expr:
    """dx of y[..., k, ...] = x[..., positions[k], ...], with x of length ``size`` along the axis.

    Written as slices and pads for a few runs of evenly spaced positions (a slice, a flip, a border), as a
    Gather of the inverse permutation where no position is read twice, as a product with a constant matrix
    of zeros and ones otherwise.
    """
    runs = _runs(positions)
    if not runs:
        raise Unsupported("it reads nothing")
    if len(runs) <= 4:
        return g.sum_terms([_run_transposed(dy, axis, start, run, size) for start, run in runs])
    if len(set(positions)) == len(positions):
        inverse = np.full(size, len(positions))
        inverse[list(positions)] = np.arange(len(positions))
        dy = dy.pad([axis], [0], [1 if len(positions) < size else 0])
        shape = [*dy.shape[:axis], size, *dy.shape[axis + 1 :]]
        return dy.op("Gather", g.ints(*inverse.tolist()), axis=axis, shape=shape)
    return along_axis(np.eye(size)[list(positions)].T, dy, axis)


def along_axis(matrix: np.ndarray[Any, Any], value: Expr, axis: int) -> Expr:
    """A constant matrix applied along one axis."""
    shape = list(value.shape)
    shape[axis] = matrix.shape[0]
    if axis == len(shape) - 1:
        return value.op("MatMul", value.like(matrix.T), shape=shape)
    if axis == len(shape) - 2:
        return value.like(matrix).op("MatMul", value, shape=shape)
    perm = [i for i in range(len(shape)) if i != axis] + [axis]
    moved = value.transpose(perm).op("MatMul", value.like(matrix.T), shape=[shape[i] for i in perm])
    return moved.transpose([int(i) for i in np.argsort(perm)])


def _runs(positions: Sequence[int]) -> list[tuple[int, Sequence[int]]]:
    """Cut into runs of constant step, each with where it starts."""
    runs: list[tuple[int, list[int]]] = []
    for k, position in enumerate(positions):
        run = runs[-1][1] if runs else []
        if run and (len(run) == 1 or position - run[-1] == run[1] - run[0]):
            run.append(position)
        else:
            runs.append((k, [position]))
    return [(start, run) for start, run in runs]


def _run_transposed(dy: Expr, axis: int, start: int, run: Sequence[int], size: int) -> Expr:
    """dx of one run of positions with a constant step."""
    dy = dy.slice([axis], [start], [start + len(run)])
    step = run[1] - run[0] if len(run) > 1 else 1
    if step == 0:
        return dy.sum([axis]).pad([axis], [run[0]], [size - run[0] - 1])
    if step < 0:
        dy = dy.flip(axis)
    first, last, step = min(run), max(run), abs(step)
    if step > 1:
        shape = list(dy.shape)
        shape[axis : axis + 1] = [len(run), 1]
        dy = dy.reshape(shape).pad([axis + 1], [0], [step - 1])
        shape[axis : axis + 2] = [len(run) * step]
        dy = dy.reshape(shape)
        last += step - 1
    return dy.pad([axis], [first], [size - last - 1])
