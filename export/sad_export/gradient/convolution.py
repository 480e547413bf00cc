"""Conv: y[o] = Σ_j W[j] · x[o·s + j·d − p], so dx = Σ_j W[j]ᵀ · dy[(· + p − j·d) / s], where that is whole.

Ways of writing it, all with standard operators and a dynamic batch:

``convtranspose``  ConvTranspose on the *same* initializer: its layout (M, C/g, kH, kW) is already right, so a
                   TensorRT engine keeps one copy of the weight for both directions.
``conv``           Conv on Wᵀ, flipped, at stride 1; for a stride, one small Conv for each phase of the
                   input (:mod:`.windows`), interleaved. Wᵀ is computed in the graph from the same
                   initializer, so the file does not grow; a runtime folds it when it loads the model.

In fp16 TensorRT for RTX shares the weight of a large 1×1 convolution by neither (:func:`_by_longer_conv`).
For onnxruntime's CPU a strided depthwise convolution has a third way: dy, spread out with zeros, convolved.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import onnx_ir as ir

from .emitter import Dgrad, Emitter, Target
from .layout import could_be_blocked
from .rules import Gradients, attribute, operand, vjp
from .values import shape_of, static
from .windows import Axis, Tap, interleave, spread, spreads, window_axes

_PACKED_FROM = 256
"""Channels, in and out, from which on TensorRT for RTX packs the weight of a 1×1 convolution in fp16."""


@vjp("Conv", inputs=[0])
def conv(b: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """Gradient of the image; weight and bias are constants of a classifier."""
    weight = operand(node, 1)
    axes = window_axes(node, [static(n) for n in shape_of(weight)[2:]])
    group = attribute(node, "group", 1)
    depthwise = group > 1 and static(shape_of(weight)[1]) == 1
    strided = any(axis.stride > 1 for axis in axes)
    if depthwise and strided and spreads(b):
        dx = _by_zero_insertion(b, weight, dy, axes, group)
    elif b.dgrad is Dgrad.AUTO_FP16 and group == 1 and _is_packed(node, axes):
        dx = _by_longer_conv(b, weight, dy, axes)
    elif _lowering(b, node, axes, depthwise=depthwise, strided=strided) is Dgrad.CONVTRANSPOSE:
        dx = _by_convtranspose(b, weight, dy, axes, group)
    elif strided:
        dx = _by_phases(b, weight, dy, axes, group)
    else:
        dx = _at_stride_one(b, weight, dy, axes, group)
    return (dx, *[None] * (len(node.inputs) - 1))


def _lowering(b: Emitter, node: ir.Node, axes: Sequence[Axis], *, depthwise: bool, strided: bool) -> Dgrad:
    """The form of one convolution.

    ConvTranspose, because it shares its weight with the forward pass in an engine too, but for

    - a stride with a dilation, which TensorRT refuses;
    - a depthwise convolution at stride 1: its weight is small, and as a Conv it runs twice as fast in
      onnxruntime (benchmarks/lowerings.py);
    - the CPU, unless a stride meets an image of few channels, whose phases would be blocks of mostly padding
      (benchmarks/cpu_cost.py).
    """
    if b.dgrad not in (Dgrad.AUTO, Dgrad.AUTO_FP16):
        return b.dgrad
    if b.target is Target.INT8:
        return Dgrad.CONV
    if strided and any(axis.dilation > 1 for axis in axes):
        return Dgrad.CONV
    if b.target is Target.CPU:
        few_channels = not could_be_blocked(operand(node, 0))
        return Dgrad.CONVTRANSPOSE if strided and few_channels else Dgrad.CONV
    return Dgrad.CONV if depthwise and not strided else Dgrad.CONVTRANSPOSE


def _is_packed(node: ir.Node, axes: Sequence[Axis]) -> bool:
    """Whether an fp16 engine holds the forward weight transposed: a large 1×1, alone or with its activation.

    A convolution that adds a residual or clips as it goes keeps its weight as it is. Where two convolutions
    are added, as in the first block of a ResNet's stage, the Add goes with the other one.
    """
    weight = operand(node, 1)
    pointwise = all(axis.kernel == axis.stride == 1 and axis.begin == axis.end == 0 for axis in axes)
    if not pointwise or min(static(n) for n in shape_of(weight)[:2]) < _PACKED_FROM:
        return False
    readers = [use.node for use in node.outputs[0].uses()]
    others = [
        other.producer()
        for reader in readers
        if reader.op_type == "Add"
        for other in reader.inputs
        if other is not None and other is not node.outputs[0]
    ]
    return not any(reader.op_type == "Clip" for reader in readers) and all(
        other is not None and other.op_type == "Conv" for other in others
    )


def _by_longer_conv(b: Emitter, weight: ir.Value, dy: ir.Value, axes: Sequence[Axis]) -> ir.Value:
    """Conv on Wᵀ over one row more than dy has, which is cut off again.

    TensorRT for RTX packs the weight of a plain 1×1 Conv in fp16 by transposing it, and turns ConvTranspose
    into such a Conv: beside a packed forward weight either is a second copy. A Conv with padding is not
    packed, so Wᵀ stays, which is what the forward one was packed to (benchmarks/engine_size.py).
    """
    longer = [dataclasses.replace(axes[0], size=axes[0].size + 1), *axes[1:]]
    return b.pad(_at_stride_one(b, weight, dy, longer, group=1), [2], [0], [-1])


def _by_convtranspose(
    b: Emitter, weight: ir.Value, dy: ir.Value, axes: Sequence[Axis], group: int
) -> ir.Value:
    parts = b.interleaved.get(dy) if b.target is Target.CPU else None
    if parts is None or any(length < stride * count for length, stride, count in parts.grid):
        return _convtranspose(b, weight, dy, axes, group)
    # Element q of phase ρ is dy[q·s' + ρ] and lands ρ·s further than that of phase 0: no need to interleave.
    terms = []
    for phase, value in sorted(parts.phases.items()):
        apart = [
            dataclasses.replace(axis, out=count, stride=axis.stride * s, begin=axis.begin - rho * axis.stride)
            for axis, rho, (_, s, count) in zip(axes, phase, parts.grid, strict=True)
        ]
        terms.append(_convtranspose(b, weight, value, apart, group))
    return b.add(terms)


def _convtranspose(b: Emitter, weight: ir.Value, dy: ir.Value, axes: Sequence[Axis], group: int) -> ir.Value:
    # A negative padding before the input shifts the result. The padding after it is what makes the output as
    # long as x; where the stride skipped more positions than there was padding, output_padding adds them.
    shifts = [max(0, -axis.begin) for axis in axes]
    ends = [-axis.remainder for axis in axes]
    n, channels = shape_of(dy)[0], static(shape_of(weight)[1]) * group
    dx = b.op(
        "ConvTranspose",
        dy,
        weight,
        shape=(n, channels, *(axis.size - shift for axis, shift in zip(axes, shifts, strict=True))),
        kernel_shape=[axis.kernel for axis in axes],
        strides=[axis.stride for axis in axes],
        dilations=[axis.dilation for axis in axes],
        pads=[*(max(0, axis.begin) for axis in axes), *(max(0, end) for end in ends)],
        output_padding=[max(0, -end) for end in ends],
        group=group,
    )
    return b.pad(dx, range(2, 2 + len(axes)), shifts, [0] * len(axes))


def _by_zero_insertion(
    b: Emitter, weight: ir.Value, dy: ir.Value, axes: Sequence[Axis], group: int
) -> ir.Value:
    """dy spread out by the stride, with zeros between, convolved at stride 1.

    Most products are with zeros, but a depthwise convolution has few, and it is in the blocked layout again.
    """
    spread_out = spread(b, dy, axes)
    lengths = [static(n) for n in shape_of(spread_out)[2:]]
    dense = [
        dataclasses.replace(axis, out=length, stride=1) for axis, length in zip(axes, lengths, strict=True)
    ]
    return _at_stride_one(b, weight, spread_out, dense, group)


def _at_stride_one(b: Emitter, weight: ir.Value, dy: ir.Value, axes: Sequence[Axis], group: int) -> ir.Value:
    every_tap = [list(range(axis.kernel)) for axis in axes]
    return _phase(b, weight, dy, axes, group, every_tap, [0] * len(axes))


def _by_phases(b: Emitter, weight: ir.Value, dy: ir.Value, axes: Sequence[Axis], group: int) -> ir.Value:
    phases: dict[Tap, ir.Value] = {}
    for phase in itertools.product(*(range(axis.stride) for axis in axes)):
        chosen = [
            [j for j in range(axis.kernel) if axis.shift_and_phase(j)[1] == rho]
            for axis, rho in zip(axes, phase, strict=True)
        ]
        if all(chosen):
            phases[phase] = _phase(b, weight, dy, axes, group, chosen, phase)
    return interleave(b, phases, axes)


def _phase(
    b: Emitter,
    weight: ir.Value,
    dy: ir.Value,
    axes: Sequence[Axis],
    group: int,
    chosen: Sequence[list[int]],
    phase: Sequence[int],
) -> ir.Value:
    """One phase of dx, (N, C, *grid), by a stride-1 Conv over the taps that land in it.

    Tap j adds W[j]ᵀ dy[q − t_j] to element q, and the t_j of one phase are evenly spaced: a correlation
    with the flipped taps, dilated by that spacing.
    """
    first = [axis.shift_and_phase(js[0])[0] for axis, js in zip(axes, chosen, strict=True)]
    last = [axis.shift_and_phase(js[-1])[0] for axis, js in zip(axes, chosen, strict=True)]
    # Element q of the Conv reads dy from q − begin on; its last tap, of the smallest shift, dy[q − t_first].
    begins = last
    ends = [axis.grid - axis.out - t for axis, t in zip(axes, first, strict=True)]
    spatial = range(2, 2 + len(axes))
    # A convolution cannot pad by a negative number: crop dy instead.
    dy = b.pad(dy, spatial, [min(0, n) for n in begins], [min(0, n) for n in ends])
    channels = static(shape_of(weight)[1]) * group
    return b.op(
        "Conv",
        dy,
        _transposed(b, weight, axes, group, chosen),
        shape=(shape_of(dy)[0], channels, *(axis.grid for axis in axes)),
        kernel_shape=[len(js) for js in chosen],
        dilations=[axis.dilation // math.gcd(axis.dilation, axis.stride) for axis in axes],
        pads=[*(max(0, n) for n in begins), *(max(0, n) for n in ends)],
        group=group,
    )


def _transposed(
    b: Emitter, weight: ir.Value, axes: Sequence[Axis], group: int, chosen: Sequence[list[int]]
) -> ir.Value:
    """(M, C/g, *kernel) → (C, M/g, *chosen, flipped), from the initializer by nodes that a runtime folds."""
    m, c, *kernel = (static(n) for n in shape_of(weight))
    rank = len(kernel)
    flips = [js for js, k in zip(chosen, kernel, strict=True) if k > 1]
    if flips:
        # Slice walks backwards from the last chosen tap; INT64_MIN is "past the beginning".
        steps = [-(js[1] - js[0]) if len(js) > 1 else -1 for js in flips]
        starts = [js[-1] for js in flips]
        ends = [js[0] - 1 if js[0] > 0 else -(2**63) for js in flips]
        where = [2 + i for i, k in enumerate(kernel) if k > 1]
        kernel = [len(js) for js in chosen]
        weight = b.op(
            "Slice",
            weight,
            b.ints(*starts),
            b.ints(*ends),
            b.ints(*where),
            b.ints(*steps),
            shape=(m, c, *kernel),
        )
    if group == 1:
        return b.transpose(weight, [1, 0, *range(2, 2 + rank)])
    weight = b.reshape(weight, (group, m // group, c, *kernel))
    weight = b.transpose(weight, [0, 2, 1, *range(3, 3 + rank)])
    return b.reshape(weight, (group * c, m // group, *kernel))
