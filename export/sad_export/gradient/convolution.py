"""The input gradient of a convolution, in the forms that a lowering chooses from.

y[o] = Σ_j W[j] · x[o·s + j·d − p], so dx = Σ_j W[j]ᵀ · dy[(· + p − j·d) / s], where that is whole:

:meth:`Convolution.by_convtranspose`  ConvTranspose on the *same* initializer: its layout (M, C/g, kH, kW) is
    already right, so a TensorRT engine keeps one copy of the weight for both directions.
:meth:`Convolution.at_stride_one`     Conv on Wᵀ, flipped. Wᵀ is computed in the graph from the same
    initializer, so the file does not grow; a runtime folds it when it loads the model.
:meth:`Convolution.phases`            for a stride, one such Conv for each phase of the input
    (:mod:`.axes`), which are then interleaved.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import onnx_ir as ir

from ..graph.expression import Builder, Expr
from ..graph.nodes import attribute, operand
from ..graph.values import static
from .axes import Axis, Tap, window_axes


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One Conv of the forward graph.

    Attributes:
        node: The node.
        weight: (M, C/g, *kernel).
        axes: Its windows.
        group: g.
    """

    node: ir.Node
    weight: Expr
    axes: tuple[Axis, ...]
    group: int

    @classmethod
    def of(cls, g: Builder, node: ir.Node) -> Convolution:
        """Read a Conv node.

        Raises:
            Unsupported: Its shapes are not static.
        """
        weight = g.of(operand(node, 1))
        axes = window_axes(node, [static(n) for n in weight.shape[2:]])
        return cls(node, weight, tuple(axes), attribute(node, "group", 1))

    @property
    def channels(self) -> int:
        """C, of the input."""
        return static(self.weight.shape[1]) * self.group

    @property
    def is_depthwise(self) -> bool:
        """Whether every group has one input channel."""
        return self.group > 1 and static(self.weight.shape[1]) == 1

    @property
    def is_strided(self) -> bool:
        """Whether it skips positions."""
        return any(axis.stride > 1 for axis in self.axes)

    def over(self, *axes: Axis) -> Convolution:
        """The same weight over other windows."""
        return dataclasses.replace(self, axes=axes)

    @property
    def _spatial(self) -> range:
        return range(2, 2 + len(self.axes))

    def by_convtranspose(self, dy: Expr) -> Expr:
        """ConvTranspose on the forward pass's own weight.

        A negative padding before the input shifts the result. The padding after it is what makes the output
        as long as x; where the stride skipped more positions than there was padding, output_padding adds
        them.
        """
        shifts = [max(0, -axis.begin) for axis in self.axes]
        ends = [-axis.remainder for axis in self.axes]
        sizes = [axis.size - shift for axis, shift in zip(self.axes, shifts, strict=True)]
        dx = dy.op(
            "ConvTranspose",
            self.weight,
            shape=(dy.shape[0], self.channels, *sizes),
            kernel_shape=[axis.kernel for axis in self.axes],
            strides=[axis.stride for axis in self.axes],
            dilations=[axis.dilation for axis in self.axes],
            pads=[*(max(0, axis.begin) for axis in self.axes), *(max(0, end) for end in ends)],
            output_padding=[max(0, -end) for end in ends],
            group=self.group,
        )
        return dx.pad(self._spatial, shifts, [0] * len(self.axes))

    def at_stride_one(self, dy: Expr) -> Expr:
        """One Conv over all taps; every stride must be one."""
        every_tap = [list(range(axis.kernel)) for axis in self.axes]
        return self._phase(dy, every_tap)

    def phases(self, dy: Expr) -> dict[Tap, Expr]:
        """One Conv for each phase of the input, to be interleaved; one that no tap reaches is left out."""
        phases: dict[Tap, Expr] = {}
        for phase in itertools.product(*(range(axis.stride) for axis in self.axes)):
            chosen = [
                [j for j in range(axis.kernel) if axis.shift_and_phase(j)[1] == rho]
                for axis, rho in zip(self.axes, phase, strict=True)
            ]
            if all(chosen):
                phases[phase] = self._phase(dy, chosen)
        return phases

    def _phase(self, dy: Expr, chosen: Sequence[list[int]]) -> Expr:
        """One phase of dx, (N, C, *grid), by a stride-1 Conv over the taps that land in it.

        Tap j adds W[j]ᵀ dy[q − t_j] to element q, and the t_j of one phase are evenly spaced: a correlation
        with the flipped taps, dilated by that spacing.
        """
        first = [axis.shift_and_phase(js[0])[0] for axis, js in zip(self.axes, chosen, strict=True)]
        last = [axis.shift_and_phase(js[-1])[0] for axis, js in zip(self.axes, chosen, strict=True)]
        # Element q of the Conv reads dy from q − begin on; its last tap, of the smallest shift, reads
        # dy[q − first].
        begins = last
        ends = [axis.grid - axis.out - t for axis, t in zip(self.axes, first, strict=True)]
        # A convolution cannot pad by a negative number: crop dy instead.
        dy = dy.pad(self._spatial, [min(0, n) for n in begins], [min(0, n) for n in ends])
        return dy.op(
            "Conv",
            self._transposed(chosen),
            shape=(dy.shape[0], self.channels, *(axis.grid for axis in self.axes)),
            kernel_shape=[len(js) for js in chosen],
            dilations=[axis.dilation // math.gcd(axis.dilation, axis.stride) for axis in self.axes],
            pads=[*(max(0, n) for n in begins), *(max(0, n) for n in ends)],
            group=self.group,
        )

    def _transposed(self, chosen: Sequence[list[int]]) -> Expr:
        """(M, C/g, *kernel) → (C, M/g, *chosen, flipped), by nodes that a runtime folds."""
        weight, g = self.weight, self.weight.g
        m, c, *kernel = (static(n) for n in weight.shape)
        rank = len(kernel)
        flips = [js for js, k in zip(chosen, kernel, strict=True) if k > 1]
        if flips:
            # Slice walks backwards from the last chosen tap; INT64_MIN is "past the beginning".
            steps = [-(js[1] - js[0]) if len(js) > 1 else -1 for js in flips]
            starts = [js[-1] for js in flips]
            ends = [js[0] - 1 if js[0] > 0 else -(2**63) for js in flips]
            where = [2 + i for i, k in enumerate(kernel) if k > 1]
            kernel = [len(js) for js in chosen]
            numbers = (g.ints(*each) for each in (starts, ends, where, steps))
            weight = weight.op("Slice", *numbers, shape=(m, c, *kernel))
        if self.group == 1:
            return weight.transpose([1, 0, *range(2, 2 + rank)])
        weight = weight.reshape((self.group, m // self.group, c, *kernel))
        weight = weight.transpose([0, 2, 1, *range(3, 3 + rank)])
        return weight.reshape((self.group * c, m // self.group, *kernel))
