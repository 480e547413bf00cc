"""The words for every runtime and TensorRT: an engine keeps one copy of each weight."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from sad_runtime.choices import ConvGradient

from ..gradient.axes import Axis, Tap
from ..gradient.convolution import Convolution
from ..gradient.words import Words
from ..graph.expression import Expr
from ..graph.functions import abs_
from ..graph.values import Unsupported, static


@dataclasses.dataclass(frozen=True)
class Interleaved:
    """What a value was interleaved from, for words that do better with the phases.

    Attributes:
        axes: Along which.
        phases: By their place.
    """

    axes: tuple[Axis, ...]
    phases: Mapping[Tap, Expr]

    @property
    def grid(self) -> tuple[tuple[int, int, int], ...]:
        """Length, stride and elements of a phase, along each axis.

        Where length < stride · elements, the end was cropped.
        """
        return tuple((axis.size, axis.stride, axis.grid) for axis in self.axes)


class Portable(Words):
    """See :class:`~sad_export.gradient.words.Words` for what each word means.

    Args:
        opset: Version of the default domain.
        conv_gradient: How the gradient of a convolution is written.
        prefix: Put before the name of every value and node.
    """

    def __init__(
        self, *, opset: int, conv_gradient: ConvGradient = ConvGradient.AUTO, prefix: str = "backward"
    ) -> None:
        super().__init__(opset=opset, prefix=prefix)
        self.conv_gradient = conv_gradient
        self.interleaved: dict[ir.Value, Interleaved] = {}

    # Masks

    def where_positive(self, y: Expr, dy: Expr) -> Expr:
        """A product with the cast comparison.

        onnxruntime runs it faster than ``Where`` (benchmarks/lowerings.py); TensorRT fuses either.
        """
        return dy * (y > 0.0)

    def where_within(self, y: Expr, low: Expr | None, high: Expr | None, dy: Expr) -> Expr:
        """Two comparisons at most."""
        if low is not None and high is not None:
            return dy * ((y > low) & (y < high))
        if low is not None:
            return dy * (y > low)
        return dy if high is None else dy * (y < high)

    # Products and sums over an image

    def times(self, dy: Expr, factor: Expr) -> Expr:
        """Broadcasting does it."""
        return dy * factor

    def expand(self, value: Expr, like: Expr) -> Expr:
        """A product with ones: unlike ``Expand`` it needs no shape computed from a dynamic batch."""
        times = self._repeats(value, like)
        if all(n == 1 for n in times):
            return value
        return value.op("Mul", value.like(np.ones(times)), shape=like.shape)

    def _repeats(self, value: Expr, like: Expr) -> list[int]:
        """How often a value is repeated along each axis."""
        have, shape = value.shape, like.shape
        if any(m == 1 and isinstance(n, str) for m, n in zip(have, shape, strict=True)):
            raise Unsupported("it sums over the batch, and images are differentiated one by one")
        return [n if isinstance(n, int) and m == 1 else 1 for m, n in zip(have, shape, strict=True)]

    def sum_to(self, gradient: Expr, like: Expr) -> Expr:
        """A ReduceSum over the axes that were repeated."""
        extra = gradient.rank - like.rank
        if axes := self._repeated_axes(gradient, like):
            gradient = gradient.sum(axes)
        return gradient.reshape(like.shape) if extra else gradient

    def _repeated_axes(self, gradient: Expr, like: Expr) -> list[int]:
        have, want = gradient.shape, like.shape
        extra = len(have) - len(want)
        return [*range(extra), *(extra + i for i, n in enumerate(want) if n == 1 and have[extra + i] != 1)]

    def sum_terms(self, terms: Sequence[Expr], *, of: Expr | None = None) -> Expr:
        """Adds, one after the other; interleaved terms phase by phase, and only their sum is interleaved.

        As where a strided convolution and the strided shortcut beside it read the same value: no zeros are
        added.
        """
        return added(self._summed_by_phases(terms))

    def _summed_by_phases(self, terms: Sequence[Expr]) -> Sequence[Expr]:
        found = [term for term in terms if term.value in self.interleaved]
        if len(found) < 2 or len({self.interleaved[term.value].grid for term in found}) > 1:
            return terms
        phases: dict[Tap, list[Expr]] = {}
        for term in found:
            for phase, value in self.interleaved[term.value].phases.items():
                phases.setdefault(phase, []).append(value)
        together = {phase: self.sum_terms(values) for phase, values in sorted(phases.items())}
        rest = [term for term in terms if term.value not in self.interleaved]
        return [self.interleave(together, self.interleaved[found[0].value].axes), *rest]

    # Functions

    def swish_gradient(self, x: Expr, s: Expr, y: Expr, dy: Expr, alpha: float = 1.0) -> Expr:
        """Half the operators of the product rule. For a large x, where x − y cancels, y equals x exactly."""
        return dy * (s * ((x - y) * alpha + 1))

    def hard_swish_gradient(self, x: Expr, dy: Expr) -> Expr:
        """0 < h < 1 is |x| < 3."""
        h = x.op("HardSigmoid", alpha=1.0 / 6.0, beta=0.5)
        inside = abs_(x) < 3.0
        return dy * (h + x * (1.0 / 6.0) * inside)

    # Windows

    def take_phase(self, x: Expr, axes: Sequence[Axis], phase: Tap) -> Expr:
        """A Slice."""
        return x.slice(
            range(2, 2 + len(axes)), phase, [axis.size for axis in axes], [axis.stride for axis in axes]
        )

    def interleave(self, phases: Mapping[Tap, Expr], axes: Sequence[Axis]) -> Expr:
        """At stride 1 there is one phase; what it was made of is kept for :meth:`sum_terms`."""
        if all(axis.stride == 1 for axis in axes):
            (whole,) = phases.values()
            return _cropped(whole, axes)
        result = _cropped(self._interleaved(phases, axes), axes)
        self.interleaved[result.value] = Interleaved(tuple(axes), phases)
        return result

    def _interleaved(self, phases: Mapping[Tap, Expr], axes: Sequence[Axis]) -> Expr:
        """One DepthToSpace where that does it, else axis by axis."""
        strides = {axis.stride for axis in axes}
        if len(axes) == 2 and len(strides) == 1:
            return _depth_to_space(phases, strides.pop())
        return interleave_axis_by_axis(phases, axes)

    def conv_input(self, conv: Convolution, dy: Expr) -> Expr:
        """As asked; or ConvTranspose, which shares its weight in an engine too, but for two cases.

        - A stride with a dilation, which TensorRT refuses.
        - A depthwise convolution at stride 1: its weight is small, and as a Conv it runs twice as fast in
          onnxruntime (benchmarks/lowerings.py).
        """
        chosen = self.conv_gradient
        if chosen is ConvGradient.AUTO:
            chosen = self._conv_gradient_of(conv)
        if chosen is ConvGradient.CONVTRANSPOSE:
            return self._by_convtranspose(conv, dy)
        if not conv.is_strided:
            return conv.at_stride_one(dy)
        return self.interleave(conv.phases(dy), conv.axes)

    def _conv_gradient_of(self, conv: Convolution) -> ConvGradient:
        if conv.is_strided and any(axis.dilation > 1 for axis in conv.axes):
            return ConvGradient.CONV
        small = conv.is_depthwise and not conv.is_strided
        return ConvGradient.CONV if small else ConvGradient.CONVTRANSPOSE

    def _by_convtranspose(self, conv: Convolution, dy: Expr) -> Expr:
        return conv.by_convtranspose(dy)

    def pools_by_rows(self, axes: Sequence[Axis]) -> bool:
        """Where rows first means fewer taps to compare, counted in elements of y.

        With a stride there are more rows than of y: a window of 3×3 at stride 2 gains nothing, at stride 1
        it has 6 comparisons instead of 9.
        """
        if len(axes) != 2:
            return False
        rows, columns = axes
        return rows.kernel + columns.kernel * min(rows.stride, rows.kernel) < rows.kernel * columns.kernel


def added(terms: Sequence[Expr]) -> Expr:
    """Adds, one after the other."""
    return functools.reduce(operator.add, terms)


def _cropped(whole: Expr, axes: Sequence[Axis]) -> Expr:
    return whole.slice(range(2, 2 + len(axes)), [0] * len(axes), [axis.size for axis in axes])


def _depth_to_space(phases: Mapping[Tap, Expr], stride: int) -> Expr:
    """out[n, c, q·s + ρ, …] = phases[ρ][n, c, q, …]: DepthToSpace in its DCR order."""
    some = next(iter(phases.values()))
    n, c, h, w = some.shape
    channels = static(c)
    if list(phases) == [(0, 0)]:
        stacked = some.pad([1], [0], [channels * (stride**2 - 1)])
    else:
        places = list(itertools.product(range(stride), repeat=2))
        zero = some if len(phases) == len(places) else some * 0.0
        first, *rest = (phases.get(place, zero) for place in places)
        stacked = first.op("Concat", *rest, axis=1, shape=(n, channels * stride**2, h, w))
    shape = (n, channels, static(h) * stride, static(w) * stride)
    return stacked.op("DepthToSpace", blocksize=stride, mode="DCR", shape=shape)


def interleave_axis_by_axis(phases: Mapping[Tap, Expr], axes: Sequence[Axis]) -> Expr:
    """Any strides: last axis first, each by a trailing axis of length stride that is then merged."""
    merged = dict(phases)
    for i in reversed(range(len(axes))):
        groups: dict[Tap, dict[int, Expr]] = {}
        for phase, value in merged.items():
            groups.setdefault(phase[:i], {})[phase[i]] = value
        merged = {rest: _interleave_one(group, 2 + i, axes[i].stride) for rest, group in groups.items()}
    return merged[()]


def _interleave_one(group: Mapping[int, Expr], axis: int, stride: int) -> Expr:
    some = next(iter(group.values()))
    shape = list(some.shape)
    if stride == 1:
        return group[0]
    thin = [*shape[: axis + 1], 1, *shape[axis + 1 :]]
    wide = [*shape[: axis + 1], stride, *shape[axis + 1 :]]
    if len(group) == 1:  # one phase among zeros: cheaper to pad than to concatenate
        ((rho, value),) = group.items()
        stacked = value.reshape(thin).pad([axis + 1], [rho], [stride - 1 - rho])
    else:
        zero = some * 0.0 if len(group) < stride else some
        first, *rest = (group.get(rho, zero).reshape(thin) for rho in range(stride))
        stacked = first.op("Concat", *rest, axis=axis + 1, shape=wide)
    shape[axis] = static(shape[axis]) * stride
    return stacked.reshape(shape)
