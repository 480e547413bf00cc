"""Operators that move elements without changing them: the gradient moves them back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .emitter import Emitter
from .rules import Gradients, attribute, constant_operand, only_first, operand, vjp
from .values import Dim, Unsupported, shape_of, static


@vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze", inputs=[0], quantized=True)
def reshape(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy in x's shape."""
    return only_first(node, b.reshape(dy, shape_of(operand(node, 0))))


@vjp("Transpose", quantized=True)
def transpose(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """The inverse permutation."""
    rank = len(shape_of(dy))
    perm = attribute(node, "perm", tuple(reversed(range(rank))))
    return (b.transpose(dy, [int(axis) for axis in np.argsort(perm)]),)


@vjp("Expand", inputs=[0])
def expand(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy, summed over what was repeated."""
    return only_first(node, b.unbroadcast(dy, operand(node, 0)))


@vjp("Tile", inputs=[0])
def tile(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx = dy, summed over the copies: each axis is split into (copies, length)."""
    x = operand(node, 0)
    repeats = constant_operand(node, 1, "repeats")
    assert repeats is not None
    split: list[Dim] = []
    copies = []
    for n, times in zip(shape_of(x), repeats.tolist(), strict=True):
        if times != 1:
            copies.append(len(split))
            split.append(times)
            static(n)
        split.append(n)
    if not copies:
        return only_first(node, dy)
    return only_first(node, b.reshape(b.reduce("ReduceSum", b.reshape(dy, split), copies), shape_of(x)))


@vjp("Concat", quantized=True)
def concat(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """Each input gets its own slice of dy."""
    axis = attribute(node, "axis", 0) % len(shape_of(dy))
    gradients: list[ir.Value | None] = []
    start = 0
    for value in node.inputs:
        assert value is not None
        end = start + static(shape_of(value)[axis])
        gradients.append(b.slice(dy, [axis], [start], [end], [1]) if b.wants(value) else None)
        start = end
    return tuple(gradients)


@vjp("Split", inputs=[0], quantized=True)
def split(b: Emitter, node: ir.Node, *gradients: ir.Value | None) -> Gradients:
    """dx is the concatenation of the parts' gradients, zero for parts that nothing used."""
    rank = len(shape_of(operand(node, 0)))
    axis = attribute(node, "axis", 0) % rank
    parts: list[ir.Value] = []
    unused = 0
    for y, dy in zip(node.outputs, gradients, strict=True):
        size = static(shape_of(y)[axis])
        if dy is not None:
            parts.append(b.pad(dy, [axis], [0 if parts else unused], [0]))
            unused = 0
        elif parts:
            parts[-1] = b.pad(parts[-1], [axis], [0], [size])
        else:
            unused += size
    if len(parts) == 1:
        return only_first(node, parts[0])
    return only_first(node, b.op("Concat", *parts, axis=axis, shape=shape_of(operand(node, 0))))


@vjp("DepthToSpace", quantized=True)
def depth_to_space(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """The blocks go back into the channels: SpaceToDepth for DCR, channels before blocks for CRD."""
    x = operand(node, 0)
    size = attribute(node, "blocksize", 1)
    if attribute(node, "mode", "DCR") == "DCR":
        return (b.op("SpaceToDepth", dy, blocksize=size, shape=shape_of(x)),)
    return (_blocks_to_channels(b, dy, size, [0, 1, 3, 5, 2, 4]),)


@vjp("SpaceToDepth", quantized=True)
def space_to_depth(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """DepthToSpace in the same mode; before opset 28 there is only DCR."""
    size, mode = attribute(node, "blocksize", 1), attribute(node, "mode", "DCR")
    return (b.op("DepthToSpace", dy, blocksize=size, mode=mode, shape=shape_of(operand(node, 0))),)


def _blocks_to_channels(b: Emitter, value: ir.Value, size: int, perm: Sequence[int]) -> ir.Value:
    """(N, C, H·s, W·s) → (N, C·s², H, W), the axes (N, C, H, s, W, s) in the order ``perm``."""
    n, c, h, w = shape_of(value)
    channels, height, width = static(c), static(h) // size, static(w) // size
    value = b.transpose(b.reshape(value, (n, channels, height, size, width, size)), perm)
    return b.reshape(value, (n, channels * size * size, height, width))


@vjp("Pad", inputs=[0])
def pad(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx is dy without the border; what the border repeats of x (edge, reflect, wrap) is added to it.

    Negative padding crops, and leaves zeros there.
    """
    x = operand(node, 0)
    axes, begins, ends = _pads(node, len(shape_of(x)))
    mode = attribute(node, "mode", "constant")
    if mode == "constant":
        return only_first(node, b.pad(dy, axes, [-n for n in begins], [-n for n in ends]))
    for axis, begin, end in zip(axes, begins, ends, strict=True):
        size = static(shape_of(x)[axis])
        # What NumPy repeats on the positions is what the operator repeats on the image.
        positions = np.arange(max(0, -begin), size - max(0, -end))
        border = (max(0, begin), max(0, end))
        dy = gather_transposed(b, dy, axis, np.pad(positions, border, mode=mode).tolist(), size)
    return only_first(node, dy)


def _pads(node: ir.Node, rank: int) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    given = constant_operand(node, 1, "pads")
    assert given is not None
    chosen = constant_operand(node, 3, "axes")
    axes = list(range(rank)) if chosen is None else [int(axis) % rank for axis in chosen]
    amounts = {
        axis: (int(begin), int(end))
        for axis, begin, end in zip(axes, given, given[len(axes) :], strict=False)
    }
    used = [axis for axis in axes if amounts[axis] != (0, 0)]
    return used, [amounts[axis][0] for axis in used], [amounts[axis][1] for axis in used]


@vjp("Slice", inputs=[0], quantized=True)
def slice_(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx is dy at the positions that were read, and zero elsewhere."""
    shape = shape_of(operand(node, 0))
    given = [
        constant_operand(node, i, what) for i, what in enumerate(("", "starts", "ends", "axes", "steps")) if i
    ]
    starts, ends, axes, steps = (None if array is None else array.tolist() for array in given)
    assert starts is not None
    assert ends is not None
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[i] if axes else i) % len(shape)
        step = steps[i] if steps else 1
        size = shape[axis]
        if isinstance(size, str):
            if start == 0 and end >= 2**31 - 1 and step == 1:
                continue
            raise Unsupported("it slices the batch, and images are differentiated one by one")
        # A slice of Python counts as the operator does, but for a negative end that stays out of range.
        end = None if step < 0 and end < -size else end
        dy = gather_transposed(b, dy, axis, list(range(size))[start:end:step], size)
    return only_first(node, dy)


@vjp("Gather", inputs=[0])
def gather(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """dx is dy summed at the positions that were read, and zero elsewhere; the indices are constant."""
    x = operand(node, 0)
    axis = attribute(node, "axis", 0) % len(shape_of(x))
    indices = constant_operand(node, 1, "indices")
    assert indices is not None
    size = static(shape_of(x)[axis])
    line = [*shape_of(x)[:axis], indices.size, *shape_of(x)[axis + 1 :]]
    positions = (indices.reshape(-1) % size).tolist()
    return only_first(node, gather_transposed(b, b.reshape(dy, line), axis, positions, size))


def gather_transposed(b: Emitter, dy: ir.Value, axis: int, positions: Sequence[int], size: int) -> ir.Value:
    """dx of y[..., k, ...] = x[..., positions[k], ...], with x of length ``size`` along the axis.

    Written as slices and pads for a few runs of evenly spaced positions (a slice, a flip, a border), as a
    Gather of the inverse permutation where no position is read twice, as a product with a constant matrix
    of zeros and ones otherwise.
    """
    runs = _runs(positions)
    if not runs:
        raise Unsupported("it reads nothing")
    if len(runs) <= 4:
        return b.add([_run_transposed(b, dy, axis, start, run, size) for start, run in runs])
    if len(set(positions)) == len(positions):
        inverse = np.full(size, len(positions))
        inverse[positions] = np.arange(len(positions))
        dy = b.pad(dy, [axis], [0], [1 if len(positions) < size else 0])
        shape = [*shape_of(dy)[:axis], size, *shape_of(dy)[axis + 1 :]]
        return b.op("Gather", dy, b.ints(*inverse.tolist()), axis=axis, shape=shape)
    return along_axis(b, np.eye(size)[positions].T, dy, axis)


def along_axis(b: Emitter, matrix: np.ndarray, value: ir.Value, axis: int) -> ir.Value:
    """A constant matrix applied along one axis."""
    shape = list(shape_of(value))
    shape[axis] = matrix.shape[0]
    if axis == len(shape) - 1:
        return b.op("MatMul", value, b.like(value, matrix.T), shape=shape)
    if axis == len(shape) - 2:
        return b.op("MatMul", b.like(value, matrix), value, shape=shape)
    perm = [i for i in range(len(shape)) if i != axis] + [axis]
    moved = b.op("MatMul", b.transpose(value, perm), b.like(value, matrix.T), shape=[shape[i] for i in perm])
    return b.transpose(moved, [int(i) for i in np.argsort(perm)])


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


def _run_transposed(
    b: Emitter, dy: ir.Value, axis: int, start: int, run: Sequence[int], size: int
) -> ir.Value:
    """dx of one run of positions with a constant step."""
    dy = b.slice(dy, [axis], [start], [start + len(run)], [1])
    step = run[1] - run[0] if len(run) > 1 else 1
    if step == 0:
        return b.pad(b.reduce("ReduceSum", dy, [axis]), [axis], [run[0]], [size - run[0] - 1])
    if step < 0:
        dy = b.flip(dy, axis)
    first, last, step = min(run), max(run), abs(step)
    if step > 1:
        shape = list(shape_of(dy))
        shape[axis : axis + 1] = [len(run), 1]
        dy = b.pad(b.reshape(dy, shape), [axis + 1], [0], [step - 1])
        shape[axis : axis + 2] = [len(run) * step]
        dy = b.reshape(dy, shape)
        last += step - 1
    return b.pad(dy, [axis], [first], [size - last - 1])
