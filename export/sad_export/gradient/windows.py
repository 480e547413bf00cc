"""Sliding windows: where a convolution's or pool's taps lie, and how to write back what was read.

Along one axis, tap j of output o reads input position::

    p = o·stride + j·dilation − begin

Writing c_j[o] back to p (:func:`scatter`) uses no ScatterND: with

    j·dilation − begin = t·stride + ρ,   0 ≤ ρ < stride

the position is p = (o + t)·stride + ρ. So within *phase* ρ (every stride-th position from ρ on) a tap is a
plain shift by t, and the phases are interleaved at the end.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from . import blocked
from .emitter import Dgrad, Emitter, Interleaved, Target
from .rules import attribute, operand
from .values import Unsupported, shape_of, static

Tap = tuple[int, ...]
"""The index of a kernel element, one number an axis."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """The windows along one spatial axis.

    Attributes:
        size: Length of the input.
        out: Length of the output.
        kernel: Number of taps.
        stride: Distance of neighbouring windows.
        dilation: Distance of neighbouring taps.
        begin: Padding before the input.
        end: Padding after it, as far as a window reads it.
    """

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int

    def shift_and_phase(self, tap: int) -> tuple[int, int]:
        """(t, ρ) of a tap."""
        return divmod(tap * self.dilation - self.begin, self.stride)

    def phase_length(self, phase: int) -> int:
        """Number of input positions in a phase."""
        return -(-(self.size - phase) // self.stride)

    @property
    def grid(self) -> int:
        """Length that every phase is brought to for interleaving; phase 0 is the longest."""
        return self.phase_length(0)

    @property
    def remainder(self) -> int:
        """Input positions after the last one that a window reads, with the padding after the input taken off.

        Positive: the stride skips some. Negative: the last window ends in padding.
        """
        return self.size - ((self.out - 1) * self.stride + (self.kernel - 1) * self.dilation + 1 - self.begin)


def unmoved(length: int) -> Axis:
    """Windows of one element each: nothing happens along this axis."""
    return Axis(length, length, 1, 1, 1, 0, 0)


def window_axes(node: ir.Node, kernel: Sequence[int]) -> list[Axis]:
    """The windows of a Conv or pool node, ``auto_pad`` resolved; (N, C, …) input and output."""
    source, output = operand(node, 0), node.outputs[0]
    sizes = [static(n) for n in shape_of(source)[2:]]
    outs = [static(n) for n in shape_of(output)[2:]]
    rank = len(sizes)
    strides = attribute(node, "strides", (1,) * rank)
    dilations = attribute(node, "dilations", (1,) * rank)
    auto_pad = attribute(node, "auto_pad", "NOTSET")
    pads = attribute(node, "pads", (0,) * 2 * rank) if auto_pad == "NOTSET" else (0,) * 2 * rank
    axes = []
    for i, (size, out, k, s, d) in enumerate(zip(sizes, outs, kernel, strides, dilations, strict=True)):
        begin, end = pads[i], pads[rank + i]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            if d > 1 and node.op_type != "Conv":
                raise Unsupported(
                    "auto_pad of a dilated pool, which runtimes pad otherwise than the standard"
                )
            total = max(0, (out - 1) * s + (k - 1) * d + 1 - size)
            begin = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            end = total - begin
        if attribute(node, "ceil_mode", 0) and (out - 1) * s >= size + begin:
            raise Unsupported("ceil_mode with a window that lies wholly in padding")
        axes.append(Axis(size, out, k, s, d, begin, end))
    return axes


def taps(axes: Sequence[Axis]) -> Iterator[Tap]:
    """All taps in scan order: the order in which ties of a maximum are decided."""
    return itertools.product(*(range(axis.kernel) for axis in axes))


def gather(b: Emitter, x: ir.Value, axes: Sequence[Axis], fill: float) -> dict[Tap, ir.Value]:
    """What each tap reads: (N, C, *size) → one (N, C, *out) value a tap, ``fill`` outside the input.

    A tap that reads nothing but padding is left out.
    """
    spatial = range(2, 2 + len(axes))
    phases: dict[Tap, ir.Value] = {}
    read = {}
    for tap in taps(axes):
        shifts, phase = _shifts_and_phase(axes, tap)
        lengths = [axis.phase_length(rho) for axis, rho in zip(axes, phase, strict=True)]
        if not all(_overlap(axis.out, t, n) for axis, t, n in zip(axes, shifts, lengths, strict=True)):
            continue
        if phase not in phases:
            phases[phase] = _every_stride(b, x, axes, phase)
        # Window o reads element o + t of the phase.
        after = [axis.out + t - n for axis, t, n in zip(axes, shifts, lengths, strict=True)]
        read[tap] = b.pad(phases[phase], spatial, [-t for t in shifts], after, fill)
    return read


def _every_stride(b: Emitter, x: ir.Value, axes: Sequence[Axis], phase: Tap) -> ir.Value:
    """Phase ρ of x: x[…, ρ::stride, …]."""
    strides = [axis.stride for axis in axes]
    if b.is_blocked(x) and max(strides) > 1:
        return blocked.every_stride(b, x, phase, strides)
    return b.slice(x, range(2, 2 + len(axes)), phase, [axis.size for axis in axes], strides)


def scatter(b: Emitter, contributions: Mapping[Tap, ir.Value], axes: Sequence[Axis]) -> ir.Value:
    """The transpose of :func:`gather`: (N, C, *out) values a tap, summed into (N, C, *size)."""
    spatial = range(2, 2 + len(axes))
    phases: dict[Tap, list[ir.Value]] = {}
    for tap, value in contributions.items():
        shifts, phase = _shifts_and_phase(axes, tap)
        if not all(_overlap(axis.out, t, axis.grid) for axis, t in zip(axes, shifts, strict=True)):
            continue
        ends = [axis.grid - axis.out - t for axis, t in zip(axes, shifts, strict=True)]
        phases.setdefault(phase, []).append(b.pad(value, spatial, shifts, ends))
    return interleave(b, {phase: b.add(terms) for phase, terms in phases.items()}, axes)


def interleave(b: Emitter, phases: Mapping[Tap, ir.Value], axes: Sequence[Axis]) -> ir.Value:
    """Put phases of shape (N, C, *grid) in their places in (N, C, *size); absent ones are zero."""
    if all(axis.stride == 1 for axis in axes):
        (whole,) = phases.values()
        return _cropped(b, whole, axes)
    result = _cropped(b, _interleaved(b, phases, axes), axes)
    grid = tuple((axis.size, axis.stride, axis.grid) for axis in axes)
    b.interleaved[result] = Interleaved(grid, phases, lambda some: interleave(b, some, axes))
    return result


def _cropped(b: Emitter, whole: ir.Value, axes: Sequence[Axis]) -> ir.Value:
    spatial = range(2, 2 + len(axes))
    return b.slice(whole, spatial, [0] * len(axes), [axis.size for axis in axes], [1] * len(axes))


def _interleaved(b: Emitter, phases: Mapping[Tap, ir.Value], axes: Sequence[Axis]) -> ir.Value:
    strides = {axis.stride for axis in axes}
    if spreads(b) and list(phases) == [(0,) * len(axes)]:
        return spread(b, phases[(0,) * len(axes)], axes)
    if b.target is not Target.CPU and len(axes) == 2 and len(strides) == 1:
        # One operator; on the CPU Concat along the last axis takes less than half its time.
        return _depth_to_space(b, phases, strides.pop())
    return _interleave_axis_by_axis(b, phases, axes)


def spreads(b: Emitter) -> bool:
    """Whether :func:`spread` may be used: for onnxruntime's CPU, unless ConvTranspose is not wanted."""
    return b.target is Target.CPU and b.dgrad is Dgrad.AUTO


def spread(b: Emitter, value: ir.Value, axes: Sequence[Axis]) -> ir.Value:
    """Phase 0 in its place among zeros: (N, C, *n) → (N, C, *size).

    Shorter than that where n·stride is, and longer where the last element lies beyond.

    By a 1×1 ConvTranspose, in onnxruntime the fastest way (benchmarks/lowerings.py).
    """
    n, c, *lengths = shape_of(value)
    channels = static(c)
    strides = [axis.stride for axis in axes]
    ends = [(static(length) - 1) * axis.stride + 1 for length, axis in zip(lengths, axes, strict=True)]
    after = [max(0, min(axis.stride - 1, axis.size - end)) for end, axis in zip(ends, axes, strict=True)]
    return b.op(
        "ConvTranspose",
        value,
        b.like(value, np.ones((channels, 1, *[1] * len(axes)))),
        shape=(n, c, *(end + extra for end, extra in zip(ends, after, strict=True))),
        kernel_shape=[1] * len(axes),
        strides=strides,
        output_padding=after,
        group=channels,
    )


def _depth_to_space(b: Emitter, phases: Mapping[Tap, ir.Value], stride: int) -> ir.Value:
    """out[n, c, q·s + ρ, …] = phases[ρ][n, c, q, …]: DepthToSpace in its DCR order."""
    some = next(iter(phases.values()))
    n, c, h, w = shape_of(some)
    channels = static(c)
    if list(phases) == [(0, 0)]:
        stacked = b.pad(some, [1], [0], [channels * (stride**2 - 1)])
    else:
        places = list(itertools.product(range(stride), repeat=2))
        zero = some if len(phases) == len(places) else b.op("Mul", some, b.like(some, 0.0))
        ordered = [phases.get(place, zero) for place in places]
        stacked = b.op("Concat", *ordered, axis=1, shape=(n, channels * stride**2, h, w))
    shape = (n, channels, static(h) * stride, static(w) * stride)
    return b.op("DepthToSpace", stacked, blocksize=stride, mode="DCR", shape=shape)


def _interleave_axis_by_axis(b: Emitter, phases: Mapping[Tap, ir.Value], axes: Sequence[Axis]) -> ir.Value:
    """Any strides: last axis first, each by a trailing axis of length stride that is then merged."""
    merged = dict(phases)
    for i in reversed(range(len(axes))):
        stride = axes[i].stride
        groups: dict[Tap, dict[int, ir.Value]] = {}
        for phase, value in merged.items():
            groups.setdefault(phase[:i], {})[phase[i]] = value
        merged = {rest: _interleave_one(b, group, 2 + i, stride) for rest, group in groups.items()}
    return merged[()]


def _interleave_one(b: Emitter, group: Mapping[int, ir.Value], axis: int, stride: int) -> ir.Value:
    shape = list(shape_of(next(iter(group.values()))))
    if stride == 1:
        return group[0]
    thin = [*shape[: axis + 1], 1, *shape[axis + 1 :]]
    wide = [*shape[: axis + 1], stride, *shape[axis + 1 :]]
    if len(group) == 1:  # one phase among zeros: cheaper to pad than to concatenate
        ((rho, value),) = group.items()
        stacked = b.pad(b.reshape(value, thin), [axis + 1], [rho], [stride - 1 - rho])
    else:
        some = next(iter(group.values()))
        zero = b.op("Mul", some, b.like(some, 0.0)) if len(group) < stride else some
        columns = [b.reshape(group.get(rho, zero), thin) for rho in range(stride)]
        stacked = b.op("Concat", *columns, axis=axis + 1, shape=wide)
    shape[axis] = static(shape[axis]) * stride
    return b.reshape(stacked, shape)


def _shifts_and_phase(axes: Sequence[Axis], tap: Tap) -> tuple[Tap, Tap]:
    pairs = [axis.shift_and_phase(j) for axis, j in zip(axes, tap, strict=True)]
    return tuple(t for t, _ in pairs), tuple(rho for _, rho in pairs)


def _overlap(out: int, shift: int, length: int) -> bool:
    """Whether any of the windows 0 … out−1, shifted, falls on the elements 0 … length−1."""
    return max(0, shift) < min(length, out + shift)
