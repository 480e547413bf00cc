"""Operations in onnxruntime's blocked layout, for the target ``cpu`` (:mod:`.layout`).

Each is written with the few operators that keep it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from .layout import NEAREST, could_be_blocked
from .values import Dim, shape_of, static

if TYPE_CHECKING:
    from .emitter import Emitter


def enter(b: Emitter, value: ir.Value) -> ir.Value:
    """``value``, brought into the blocked layout if it can be there: a 1×1 MaxPool is the identity.

    After a Pad it is a Conv: onnxruntime merges padding into what reads it, and a 1×1 pool takes none.
    """
    if b.is_blocked(value) or not could_be_blocked(value):
        return value
    producer = value.producer()
    if producer is not None and producer.op_type == "Pad":
        return affine(b, value, 1.0, 0.0)
    return b.op("MaxPool", value, kernel_shape=[1, 1])


def step(b: Emitter, value: ir.Value, sign: float = 1.0, threshold: float = 0.0) -> ir.Value:
    """1 where sign·(value − threshold) > 0, 0 where it is 0; it is never negative here.

    min(2⁹⁰·sign·(value − threshold), 1), in the one form that stays blocked and runs as a single loop: a
    depthwise 1×1 Conv with its Clip fused in. Exact, since a power of two rounds nothing and the
    difference of equal numbers is 0; a difference below 10⁻²⁷ is taken for less.
    """
    return affine(b, value, sign * 2.0**90, -sign * 2.0**90 * threshold, clip=(0.0, 1.0))


def inside(b: Emitter, value: ir.Value, high: float) -> ir.Value:
    """1[0 < value < high] for 0 ≤ value ≤ high, by two Convs with their activations fused in.

    A V that falls from ``high`` at 0 to 0 at 2⁻³⁰·high and rises to ``high`` at ``high``, then a step
    below that. Exact, but a value below 2⁻⁵⁴·high is taken for 0.
    """
    shifted = affine(b, value, 1.0, -(2.0**-30) * high)
    valley = b.op("LeakyRelu", shifted, alpha=-(2.0**30))
    return step(b, valley, -1.0, high)


def affine(
    b: Emitter, value: ir.Value, slope: float, offset: float, *, clip: tuple[float, float] | None = None
) -> ir.Value:
    """``slope · value + offset`` by a depthwise 1×1 Conv, clipped if asked to."""
    channels = static(shape_of(value)[1])
    weight = b.constant(np.full((channels, 1, 1, 1), slope, dtype=np.float32))
    bias = b.constant(np.full(channels, offset, dtype=np.float32)) if offset else None
    result = b.op("Conv", value, weight, bias, kernel_shape=[1, 1], group=channels)
    if clip is None:
        return result
    low, high = (b.constant(np.asarray(bound, dtype=np.float32)) for bound in clip)
    return b.op("Clip", result, low, high)


def every_stride(b: Emitter, value: ir.Value, starts: Sequence[int], strides: Sequence[int]) -> ir.Value:
    """``value[:, :, start::stride, …]`` by a depthwise Conv whose kernel is 0 but for its last element.

    Faster than a Slice, which leaves the layout (benchmarks/lowerings.py). It makes NaN of what lies beside
    an infinity.
    """
    n, c, *sizes = shape_of(value)
    channels = static(c)
    kernel = np.zeros((channels, 1, *(start + 1 for start in starts)))
    kernel.reshape(channels, -1)[:, -1] = 1.0
    lengths = [
        -(-(static(size) - start) // stride)
        for size, start, stride in zip(sizes, starts, strides, strict=True)
    ]
    return b.op(
        "Conv",
        value,
        b.like(value, kernel),
        shape=(n, c, *lengths),
        kernel_shape=list(kernel.shape[2:]),
        strides=list(strides),
        group=channels,
    )


def repeat(b: Emitter, value: ir.Value, shape: Sequence[Dim], times: Sequence[int]) -> ir.Value:
    """A nearest Resize, which stays in the blocked layout, where a product of two shapes does not."""
    scales = b.constant(np.array(times, dtype=np.float32))
    return b.op("Resize", value, None, scales, shape=shape, **NEAREST)
