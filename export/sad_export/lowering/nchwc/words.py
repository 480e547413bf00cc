"""The words for onnxruntime's CPU, in the few operators that keep its NCHWc layout (:mod:`.layout`).

1. A mask is written with depthwise 1×1 convolutions, whose Clip or LeakyRelu runs in the same loop, not with
   a comparison.
2. A gradient that arrives in the plain layout and meets one in NCHWc is passed through a 1×1 MaxPool: an
   identity that enters the layout.
3. What is broadcast over an image is repeated by a nearest Resize, and a sum over the image is a global
   average pool: squeeze-and-excitation stays in the layout.
4. What a pool's taps read at a stride is read by a depthwise convolution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sad_runtime.choices import ConvGradient

from ...gradient.axes import Axis, Tap
from ...gradient.convolution import Convolution
from ...graph.expression import Expr
from ...graph.nodes import operand
from ...graph.values import static
from ..portable import Interleaved, Portable, added, interleave_axis_by_axis
from .layout import NEAREST, Layout, could_be_nchwc, is_concatenated


class Nchwc(Portable):
    """The same results as :class:`~sad_export.lowering.portable.Portable`, faster in onnxruntime."""

    crops_before_padding = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._layout = Layout()

    def _holds(self, *values: Expr) -> bool:
        """Whether onnxruntime will have all of these in NCHWc."""
        return all(self._layout.holds(value.value) for value in values)

    # Masks

    def where_positive(self, y: Expr, dy: Expr) -> Expr:
        """A product with a step."""
        if not self._holds(y):
            return super().where_positive(y, dy)
        return self._enter(dy) * self._step(y)

    def where_within(self, y: Expr, low: Expr | None, high: Expr | None, dy: Expr) -> Expr:
        """For constant bounds, a product with a step at each, or with one mask between 0 and the other."""
        bounds = [None if bound is None else bound.numbers for bound in (low, high)]
        computed = any(b is not None and n is None for b, n in zip((low, high), bounds, strict=True))
        if computed or not self._holds(y):
            return super().where_within(y, low, high, dy)
        least, most = (None if number is None else float(number) for number in bounds)
        dx = self._enter(dy)
        if least == 0 and most is not None and most > 0:
            return dx * self._open_interval_mask(y, most)
        for bound, sign in ((least, 1.0), (most, -1.0)):
            if bound is not None:
                dx = dx * self._step(y, sign, bound)
        return dx

    # Products and sums over an image

    def times(self, dy: Expr, factor: Expr) -> Expr:
        """In the layout, if the factor has it."""
        if self._holds(dy, factor):
            factor = self.expand(factor, dy)
        elif dy.shape == factor.shape and self._holds(factor):
            dy = self._enter(dy)
        return dy * factor

    def expand(self, value: Expr, like: Expr) -> Expr:
        """A nearest Resize, which stays in the layout, where a product of two shapes does not."""
        times = self._repeats(value, like)
        if all(n == 1 for n in times) or times[1] != 1 or not self._holds(like):
            return super().expand(value, like)
        scales = self.constant(np.array(times, dtype=np.float32))
        return self._enter(value).op("Resize", None, scales, shape=like.shape, **NEAREST)

    def sum_to(self, gradient: Expr, like: Expr) -> Expr:
        """Over the image, a global average pool."""
        if self._repeated_axes(gradient, like) != [2, 3] or not self._holds(gradient):
            return super().sum_to(gradient, like)
        height, width = (static(n) for n in gradient.shape[2:])
        return gradient.op("GlobalAveragePool", shape=like.shape) * float(height * width)

    def sum_terms(self, terms: Sequence[Expr], *, of: Expr | None = None) -> Expr:
        """If one term is in the layout, all enter it; but the gradient of a Concat is going to be sliced,
        which leaves the layout, so there it takes all of them.
        """
        terms = self._summed_by_phases(terms)
        held = [self._holds(term) for term in terms]
        if any(held) and (all(held) or of is None or not is_concatenated(of.value)):
            terms = [self._enter(term) for term in terms]
        return added(terms)

    # Functions

    def swish_gradient(self, x: Expr, s: Expr, y: Expr, dy: Expr, alpha: float = 1.0) -> Expr:
        """1 + x − y as (1 − y) + x."""
        if alpha != 1.0 or not self._holds(y):
            return super().swish_gradient(x, s, y, dy, alpha)
        return dy * (s * (self._affine(y, -1.0, 1.0) + x))

    def hard_swish_gradient(self, x: Expr, dy: Expr) -> Expr:
        """The slope is 2h − ½ where 0 < h < 1, and h itself at both ends.

        As 2h − ½ + ½·1[h = 0] − ½·1[h = 1], each a depthwise Conv, added as it goes.
        """
        if not self._holds(x):
            return super().hard_swish_gradient(x, dy)
        dx = self._enter(dy)
        h = self._affine(x, 1.0 / 6.0, 0.5, clip=(0.0, 1.0))
        at_zero = self._affine(h, -(2.0**90), 1.0).op("Relu")
        # 2²⁴ is the first power that tells 1 from the float before it; the sum is exact.
        at_one = self._affine(h, 2.0**24, 1.0 - 2.0**24).op("Relu")
        slope = self._affine(at_zero, 0.5, -0.5) + self._affine(h, 2.0, 0.0)
        return dx * (self._affine(at_one, -0.5, 0.0) + slope)

    # Windows

    def take_phase(self, x: Expr, axes: Sequence[Axis], phase: Tap) -> Expr:
        """A depthwise Conv whose kernel is 0 but for its last element.

        Faster than a Slice, which leaves the layout (benchmarks/lowerings.py). It makes NaN of what lies
        beside an infinity.
        """
        strides = [axis.stride for axis in axes]
        if max(strides) == 1 or not self._holds(x):
            return super().take_phase(x, axes, phase)
        n, c, *sizes = x.shape
        channels = static(c)
        kernel = np.zeros((channels, 1, *(start + 1 for start in phase)))
        kernel.reshape(channels, -1)[:, -1] = 1.0
        lengths = [
            -(-(static(size) - start) // stride)
            for size, start, stride in zip(sizes, phase, strides, strict=True)
        ]
        return x.op(
            "Conv",
            x.like(kernel),
            shape=(n, c, *lengths),
            kernel_shape=list(kernel.shape[2:]),
            strides=strides,
            group=channels,
        )

    def _interleaved(self, phases: Mapping[Tap, Expr], axes: Sequence[Axis]) -> Expr:
        """Axis by axis: Concat along the last axis takes less than half of DepthToSpace's time here."""
        if self._may_insert_zeros and list(phases) == [(0,) * len(axes)]:
            return self._insert_zeros(phases[(0,) * len(axes)], axes)
        return interleave_axis_by_axis(phases, axes)

    @property
    def _may_insert_zeros(self) -> bool:
        """Unless ConvTranspose is not wanted."""
        return self.conv_gradient is ConvGradient.AUTO

    def _insert_zeros(self, value: Expr, axes: Sequence[Axis]) -> Expr:
        """Phase 0 in its place among zeros: (N, C, *n) → (N, C, *size).

        The result may be shorter than ``size`` where n·stride is, or longer where the last element lands past
        it. By a 1×1 ConvTranspose, in onnxruntime the fastest way (benchmarks/lowerings.py).
        """
        n, c, *lengths = value.shape
        channels = static(c)
        ends = [(static(length) - 1) * axis.stride + 1 for length, axis in zip(lengths, axes, strict=True)]
        after = [max(0, min(axis.stride - 1, axis.size - end)) for end, axis in zip(ends, axes, strict=True)]
        return value.op(
            "ConvTranspose",
            value.like(np.ones((channels, 1, *[1] * len(axes)))),
            shape=(n, c, *(end + extra for end, extra in zip(ends, after, strict=True))),
            kernel_shape=[1] * len(axes),
            strides=[axis.stride for axis in axes],
            output_padding=after,
            group=channels,
        )

    def conv_input(self, conv: Convolution, dy: Expr) -> Expr:
        """A strided depthwise convolution has a third form: dy with zeros between, convolved at stride 1.

        Most products are with zeros, but a depthwise convolution has few, and it is in the layout again.
        """
        if not (conv.is_depthwise and conv.is_strided and self._may_insert_zeros):
            return super().conv_input(conv, dy)
        spread = self._insert_zeros(dy, conv.axes)
        dense = (
            dataclasses.replace(axis, out=static(length), stride=1)
            for axis, length in zip(conv.axes, spread.shape[2:], strict=True)
        )
        return conv.over(*dense).at_stride_one(spread)

    def _conv_gradient_of(self, conv: Convolution) -> ConvGradient:
        """Conv, unless a stride meets few channels, whose phases would be blocks of mostly padding.

        Measured in benchmarks/cpu_cost.py.
        """
        if conv.is_strided and any(axis.dilation > 1 for axis in conv.axes):
            return ConvGradient.CONV
        few_channels = not could_be_nchwc(operand(conv.node, 0))
        return ConvGradient.CONVTRANSPOSE if conv.is_strided and few_channels else ConvGradient.CONV

    def _by_convtranspose(self, conv: Convolution, dy: Expr) -> Expr:
        """From the phases that dy was interleaved from, if it was.

        Element q of phase ρ is dy[q·s' + ρ] and lands ρ·s further than that of phase 0.
        """
        parts = self.interleaved.get(dy.value)
        if parts is None or any(length < stride * count for length, stride, count in parts.grid):
            return super()._by_convtranspose(conv, dy)
        return self.sum_terms(
            [
                conv.over(*_of_phase(conv.axes, phase, parts)).by_convtranspose(value)
                for phase, value in sorted(parts.phases.items(), key=lambda item: item[0])
            ]
        )

    # What keeps the layout

    def _enter(self, value: Expr) -> Expr:
        """Brought into the layout if it can be there: a 1×1 MaxPool is the identity.

        After a Pad it is a Conv: onnxruntime merges padding into what reads it, and a 1×1 pool takes none.
        """
        if self._holds(value) or not could_be_nchwc(value.value):
            return value
        producer = value.value.producer()
        if producer is not None and producer.op_type == "Pad":
            return self._affine(value, 1.0, 0.0)
        return value.op("MaxPool", kernel_shape=[1, 1])

    def _step(self, value: Expr, sign: float = 1.0, threshold: float = 0.0) -> Expr:
        """1 where sign·(value − threshold) > 0, 0 where it is 0; it is never negative here.

        min(2⁹⁰·sign·(value − threshold), 1), in the one form that stays in the layout and runs as a single
        loop: a depthwise 1×1 Conv with its Clip fused in. Exact, since a power of two rounds nothing and the
        difference of equal numbers is 0; a difference below 10⁻²⁷ is taken for less.
        """
        return self._affine(value, sign * 2.0**90, -sign * 2.0**90 * threshold, clip=(0.0, 1.0))

    def _open_interval_mask(self, value: Expr, high: float) -> Expr:
        """1[0 < value < high] for 0 ≤ value ≤ high, by two Convs with their activations fused in.

        A V that falls from ``high`` at 0 to 0 at 2⁻³⁰·high and rises to ``high`` at ``high``, then a step
        below that. Exact, but a value below 2⁻⁵⁴·high is taken for 0.
        """
        shifted = self._affine(value, 1.0, -(2.0**-30) * high)
        valley = shifted.op("LeakyRelu", alpha=-(2.0**30))
        return self._step(valley, -1.0, high)

    def _affine(
        self, value: Expr, slope: float, offset: float, *, clip: tuple[float, float] | None = None
    ) -> Expr:
        """``slope · value + offset`` by a depthwise 1×1 Conv, clipped if asked to."""
        channels = static(value.shape[1])
        weight = self.constant(np.full((channels, 1, 1, 1), slope, dtype=np.float32))
        bias = self.constant(np.full(channels, offset, dtype=np.float32)) if offset else None
        result = value.op("Conv", weight, bias, kernel_shape=[1, 1], group=channels)
        if clip is None:
            return result
        low, high = (self.constant(np.asarray(bound, dtype=np.float32)) for bound in clip)
        return result.op("Clip", low, high)


def _of_phase(axes: Sequence[Axis], phase: Tap, parts: Interleaved) -> list[Axis]:
    """The windows over one phase of what was interleaved."""
    return [
        dataclasses.replace(axis, out=count, stride=axis.stride * s, begin=axis.begin - rho * axis.stride)
        for axis, rho, (_, s, count) in zip(axes, phase, parts.grid, strict=True)
    ]
