"""Where the taps of a sliding window lie.

Along one axis, tap j of output o reads input position::

    p = o·stride + j·dilation − begin

With

    j·dilation − begin = t·stride + ρ,   0 ≤ ρ < stride

that is p = (o + t)·stride + ρ: within *phase* ρ (every stride-th position from ρ on) a tap is a plain shift
by t.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from ..graph.nodes import attribute, operand
from ..graph.values import Unsupported, shape_of, static

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


def identity_axis(length: int) -> Axis:
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
                raise Unsupported("auto_pad of a dilated pool, which runtimes pad in different ways")
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


def shifts_and_phase(axes: Sequence[Axis], tap: Tap) -> tuple[Tap, Tap]:
    """(t, ρ) of a tap along each axis."""
    pairs = [axis.shift_and_phase(j) for axis, j in zip(axes, tap, strict=True)]
    return tuple(t for t, _ in pairs), tuple(rho for _, rho in pairs)


def overlaps(out: int, shift: int, length: int) -> bool:
    """Whether any of the windows 0 … out−1, shifted, falls on the elements 0 … length−1."""
    return max(0, shift) < min(length, out + shift)
