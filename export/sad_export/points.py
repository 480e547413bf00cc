"""Many points of each image in one batch, and what becomes of the gradients there.

Integrated gradients and SmoothGrad take the gradient at points around each image. These are further images
of the batch, N·(1 + points), so that the file has one forward and one backward pass and each weight once,
and the batch stays dynamic. The image itself is the first one: it decides the class and gives the logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from sad_runtime.choices import Method, Objective

from .attribution import Attribution
from .gradient import Seed
from .graph.errors import GraphError
from .graph.expression import Array, Builder, Expr
from .graph.values import Dim, ir_shape, shape_of, static
from .loading import ForwardGraph


@dataclasses.dataclass(frozen=True)
class Points:
    """The points of each image at which the gradient is taken; the first of the batch is the image itself.

    Attributes:
        image: (N, C, H, W).
        attribution: What is written.
        batch: The name of N.
    """

    image: ir.Value
    attribution: Attribution
    batch: str

    @classmethod
    def of(cls, graph: ForwardGraph, attribution: Attribution) -> Points:
        """Of a classifier's image.

        Raises:
            GraphError: Its batch is fixed.
        """
        batch = graph.image_shape[0]
        if isinstance(batch, int):
            raise GraphError(
                f"its batch is fixed to {batch}, and {attribution.method} takes the gradient at more images",
                hint="export it with a dynamic batch; saliency and gradcam take a fixed one",
            )
        return cls(graph.image, attribution, batch)

    @property
    def count(self) -> int:
        """Points of an image beside itself."""
        settings = self.attribution.settings
        return int(settings.get("steps") or settings["samples"])

    @property
    def all_points(self) -> str:
        """The name of N·(1 + count)."""
        return f"{self.batch}_points"

    def put_into_batch(self, graph: ForwardGraph) -> ir.Value:
        """Write the points in front of the forward graph: its batch is then N·(1 + count)."""
        readers = [use.node for use in graph.image.uses()]
        for inner in (value for node in graph.nodes for value in node.outputs):
            if inner.shape is not None:
                dims = shape_of(inner)
                inner.shape = ir_shape([self.all_points if dim == self.batch else dim for dim in dims])
        g = Builder(opset=graph.opset, prefix="points")
        x = self._flat(g.of(self.image))
        integrated = self.attribution.chosen is Method.INTEGRATED
        further = self._on_the_line(x) if integrated else self._noisy(x)
        _, channels, pixels = further.shape[1:]
        every = x.op("Concat", further, axis=1, shape=(self.batch, 1 + self.count, channels, pixels))
        points = every.reshape((self.all_points, *graph.image_shape[1:])).value
        g.append_to(graph.model.graph)
        for node in readers:
            for i, value in enumerate(node.inputs):
                if value is graph.image:
                    node.replace_input_with(i, points)
        graph.model.graph.sort()
        return points

    def _flat(self, image: Expr) -> Expr:
        """(N, C, H, W) → (N, 1, C, H·W)."""
        _, channels, height, width = image.shape
        return image.reshape((self.batch, 1, channels, static(height) * static(width)))

    def _on_the_line(self, x: Expr) -> Expr:
        """x' + α(x − x'), (N, steps, C, H·W)."""
        alphas, _ = integration(self.count)
        alpha = alphas.reshape(1, -1, 1, 1)
        return x * alpha if self._baseline is None else (x - self._baseline) * alpha + self._baseline

    @property
    def _baseline(self) -> Array | None:
        """x', (1, 1, C or 1, 1); None for zero.

        Raises:
            GraphError: Neither one number nor one a channel.
        """
        numbers = np.atleast_1d(np.asarray(self.attribution.settings["baseline"], dtype=np.float64))
        channels = static(shape_of(self.image)[1])
        if numbers.shape not in ((1,), (channels,)) or not np.isfinite(numbers).all():
            raise GraphError(
                f"a baseline is one number or {channels}, one a channel, got {list(map(float, numbers))}"
            )
        return numbers.reshape(1, 1, -1, 1) if numbers.any() else None

    def _noisy(self, x: Expr) -> Expr:
        """x + σε, (N, samples, C, H·W); ε is cut out of one constant, so that the file stays small."""
        settings, (_, *chw) = self.attribution.settings, shape_of(self.image)
        size, stride = int(np.prod([static(n) for n in chw])), noise_stride(chw, self.count)
        pool = x.g.constant(noise_pool(settings["noise_seed"], chw, self.count).astype(x.dtype.numpy()))
        cuts = [pool.slice((0,), (k * stride,), (k * stride + size,)) for k in range(self.count)]
        every = cuts[0].op("Concat", *cuts[1:], axis=0, shape=(self.count * size,))
        epsilon = every.reshape((1, self.count, *x.shape[2:]))
        axes = (1, 2, 3)
        sigma = (x.reduce("ReduceMax", axes) - x.reduce("ReduceMin", axes)) * settings["noise"]
        return epsilon.op("Mul", sigma) + x

    def repeated(
        self, g: Builder, logits: ir.Value, given: ir.Value | None, seed: Seed
    ) -> tuple[ir.Value | None, Seed]:
        """What every point of an image shares with it: its further input, or the class that is its largest.

        Returns:
            The further input of the walk's seed, and that seed.
        """
        zeros = g.constant(np.zeros(1 + self.count, dtype=np.int64))
        if seed.objective is Objective.LARGEST:
            own = self.own(g.of(logits))
            label = own.op("ArgMax", axis=2, keepdims=0, shape=(self.batch, 1), dtype=ir.DataType.INT64)
            every = label.op("Gather", zeros, axis=1, shape=(self.batch, 1 + self.count))
            return every.reshape((self.all_points,)).value, Seed(Objective.LABEL)
        if given is None:
            return None, seed
        _, *rest = shape_of(given)
        one = g.of(given).reshape((self.batch, 1, *rest))
        every = one.op("Gather", zeros, axis=1, shape=(self.batch, 1 + self.count, *rest))
        return every.reshape((self.all_points, *rest)).value, seed

    def own(self, logits: Expr) -> Expr:
        """Logits of all points → those of the images themselves, (N, 1, K)."""
        classes = logits.shape[1]
        return logits.reshape((self.batch, 1 + self.count, classes)).slice((1,), (0,), (1,))

    def summed(self, g: Builder, gradient: ir.Value) -> Expr:
        """Gradients of all points → what the method makes of them, (N, C, H, W)."""
        x = self._flat(g.of(self.image))
        every = g.of(gradient).reshape((self.batch, 1 + self.count, *x.shape[2:]))
        every = every.slice((1,), (1,), (1 + self.count,))
        if self.attribution.chosen is Method.SMOOTHGRAD:
            result = every.mean((1,))
        else:
            _, weights = integration(self.count)
            whole = (every * weights.reshape(1, -1, 1, 1)).sum((1,))
            result = whole * (x if self._baseline is None else x - self._baseline)
        return result.reshape(shape_of(self.image))


def integration(steps: int) -> tuple[Array, Array]:
    """Points and weights of Gauss–Legendre on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    return (points + 1) / 2, weights / 2


def noise_stride(chw: Sequence[Dim], samples: int) -> int:
    """How far one sample's noise begins after another's in :func:`noise_pool`."""
    return max(1, static(chw[1]) * static(chw[2]) // samples)


def noise_pool(seed: int, chw: Sequence[Dim], samples: int) -> Array:
    """ε of all samples: that of sample k is the C·H·W numbers from k · :func:`noise_stride` on.

    At each pixel the samples are independent of each other, as the pixels of each sample are.
    """
    size = int(np.prod([static(n) for n in chw])) + (samples - 1) * noise_stride(chw, samples)
    return np.random.default_rng(seed).standard_normal(size)
