"""Resize: along each axis y = R·x with a constant matrix R, so dx = Rᵀ·dy, axis by axis.

R is nearest, linear or cubic interpolation in any of the operator's coordinate systems.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from ...graph.expression import Expr
from ...graph.nodes import attribute
from ...graph.values import Unsupported, static
from ..registry import Gradient, vjp
from .shape import along_axis

Array = np.ndarray[Any, Any]


@vjp("Resize", inputs=[0])
def resize(
    x: Expr,
    roi: Expr | None = None,
    scales: Expr | None = None,
    sizes: Expr | None = None,
    *,
    y: Expr,
    dy: Expr,
    node: ir.Node,
    antialias: int = 0,
    coordinate_transformation_mode: str = "half_pixel",
) -> Gradient:
    """dx = Rᵀ·dy along each axis that is resized."""
    if antialias:
        raise Unsupported("it has antialias, which TensorRT refuses")
    axes = [axis % x.rank for axis in attribute(node, "axes", range(x.rank))]
    factors = _factors(node, axes, x, y, scales, sizes)
    cropped = coordinate_transformation_mode == "tf_crop_and_resize" and roi is not None
    rois = roi.known("regions of interest") if cropped and roi is not None else None
    # The last axes first: they are the largest, and each step makes the value smaller if x was enlarged.
    for i in reversed(range(len(axes))):
        axis = axes[i]
        n, m = x.shape[axis], y.shape[axis]
        region = (0.0, 1.0) if rois is None else (float(rois[i]), float(rois[len(axes) + i]))
        if (n == m and factors[i] == 1 and region == (0.0, 1.0)) or isinstance(n, str):
            if n != m:
                raise Unsupported("it resizes the batch")
            continue
        matrix = _matrix(node, static(n), static(m), factors[i], region)
        dy = _transposed(matrix, dy, axis)
    return dy


def _factors(
    node: ir.Node, axes: list[int], x: Expr, y: Expr, scales: Expr | None, sizes: Expr | None
) -> list[float]:
    """Output length / input length of each axis, as the operator reckons it."""
    given = None if scales is None else scales.known("scales")
    if given is not None and given.size:
        return [float(scale) for scale in given]
    lengths = [x.shape[axis] for axis in axes]
    policy = attribute(node, "keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        # Sizes that name the batch too are computed from its shape; what they come to is the output's.
        outs = [y.shape[axis] for axis in axes]
        return [1.0 if m == n else static(m) / static(n) for m, n in zip(outs, lengths, strict=True)]
    assert sizes is not None
    ratios = [int(m) / static(n) for m, n in zip(sizes.known("sizes"), lengths, strict=True)]
    return [min(ratios) if policy == "not_larger" else max(ratios)] * len(ratios)


def _transposed(matrix: Array, dy: Expr, axis: int) -> Expr:
    """Rᵀ·dy along an axis; where R repeats each element k times, the sum of k neighbours."""
    m, n = matrix.shape
    k = m // n
    if m == k * n and np.array_equal(matrix, np.repeat(np.eye(n), k, axis=0)):
        shape = list(dy.shape)
        shape[axis : axis + 1] = [n, k]
        summed = dy.reshape(shape).sum([axis + 1])
        shape[axis : axis + 2] = [n]
        return summed.reshape(shape)
    return along_axis(matrix.T, dy, axis)


def _matrix(node: ir.Node, n: int, m: int, scale: float, roi: tuple[float, float]) -> Array:
    """R of shape (m, n), float64."""
    transformation = attribute(node, "coordinate_transformation_mode", "half_pixel")
    at = _coordinates(transformation, n, m, scale, roi)
    mode = attribute(node, "mode", "nearest")
    if mode == "nearest":
        taps, weights = _nearest(at, attribute(node, "nearest_mode", "round_prefer_floor")), np.ones((m, 1))
    elif mode == "linear":
        low = np.floor(at).astype(int)
        taps, weights = np.stack([low, low + 1], 1), np.stack([1 - (at - low), at - low], 1)
    else:
        low = np.floor(at).astype(int)
        taps = low[:, None] + np.arange(-1, 3)
        weights = _cubic(np.abs(at[:, None] - taps), attribute(node, "cubic_coeff_a", -0.75))
    if attribute(node, "exclude_outside", 0) and mode == "cubic":
        weights = np.where((taps >= 0) & (taps < n), weights, 0.0)
        weights = weights / weights.sum(1, keepdims=True)
    matrix = np.zeros((m, n))
    np.add.at(matrix, (np.arange(m)[:, None], np.clip(taps, 0, n - 1)), weights)
    if transformation == "tf_crop_and_resize":
        matrix[(at < 0) | (at > n - 1)] = 0.0  # the extrapolation value, a constant
    return matrix


def _coordinates(mode: str, n: int, m: int, scale: float, roi: tuple[float, float]) -> Array:
    """Where each output position lies in the input (operator specification of Resize)."""
    k = np.arange(m, dtype=np.float64)
    length = n * scale
    if mode == "align_corners":
        return np.zeros(m) if length == 1 else k * (n - 1) / (length - 1)
    if mode == "asymmetric":
        return k / scale
    if mode == "tf_crop_and_resize":
        start, end = roi
        if m > 1:
            return start * (n - 1) + k * (end - start) * (n - 1) / (length - 1)
        return np.full(m, 0.5 * (start + end) * (n - 1))
    if mode == "pytorch_half_pixel" and length <= 1:
        return np.full(m, -0.5)
    at = (k + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        # The rounding of the length is divided between both ends.
        adjustment = m / length
        at = n / 2 * (1 - adjustment) + at
    return at


def _nearest(at: Array, mode: str) -> Array:
    rounding: dict[str, Callable[[Array], Array]] = {
        "round_prefer_floor": lambda values: np.ceil(values - 0.5),
        "round_prefer_ceil": lambda values: np.floor(values + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    return rounding[mode](at).astype(int)[:, None]


def _cubic(distance: Array, a: float) -> Array:
    """The cubic convolution kernel of Keys (1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    weights: Array = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    return weights
