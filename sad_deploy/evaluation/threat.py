"""What an attacker may do: change every pixel a little, and no more."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np

from sad_runtime.choices import Norm, choose
from sad_runtime.errors import UserError

Array = np.ndarray[Any, Any]

_SLACK = 1e-6
"""Of float32: x + ε − x is not always ε."""


@dataclasses.dataclass(frozen=True)
class Threat:
    """The images that an attack may give: those within ε of the original, with pixels in [0, 1].

    Attributes:
        epsilon: Largest distance, in pixels of [0, 1].
        norm: How it is measured: ``linf``, the largest change of a pixel, or ``l2``, the root of the sum of
            squares.

    Raises:
        UserError: ε is no number above 0, or above 1 in L∞, or the norm is another word.
    """

    epsilon: float
    norm: Norm = Norm.LINF

    def __post_init__(self) -> None:
        choose(Norm, self.norm, "norm")
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise UserError(f"epsilon must be above 0, got {self.epsilon:g}", hint="for example 8/255")
        if self.norm is Norm.LINF and self.epsilon > 1:
            raise UserError(
                f"epsilon is in pixels of [0, 1], got {self.epsilon:g}",
                hint=f"{self.epsilon:g}/255 if grey levels are meant",
            )

    def __str__(self) -> str:
        """For titles: ``L∞, ε 0.1 (25.5/255)``."""
        if self.norm is Norm.LINF:
            return f"L∞, ε {self.epsilon:.4g} ({255 * self.epsilon:.4g}/255)"
        return f"L2, ε {self.epsilon:.4g}"

    def project(self, x: Array, origin: Array) -> Array:
        """The nearest allowed images, in the norm: (N, C, H, W) like both arguments."""
        if self.norm is Norm.LINF:
            e = np.float32(self.epsilon)
            within: Array = np.clip(np.clip(x, origin - e, origin + e), 0, 1)
            return within
        delta = np.clip(x, 0, 1) - origin
        length = lengths(delta)
        scale = np.where(length > self.epsilon, self.epsilon / np.maximum(length, 1e-12), 1)
        nearest: Array = np.clip(origin + delta * _over(scale.astype(np.float32), delta), 0, 1)
        return nearest

    def steepest(self, gradient: Array) -> Array:
        """The direction of length 1 along which a loss with this gradient rises fastest."""
        if self.norm is Norm.LINF:
            return np.sign(gradient)
        return gradient / _over(np.maximum(lengths(gradient), 1e-12).astype(np.float32), gradient)

    def random_start(self, origin: Array, rngs: list[np.random.Generator]) -> Array:
        """A random image on the sphere around each original, then brought into [0, 1]."""
        shape = origin.shape[1:]
        if self.norm is Norm.LINF:
            noise = np.stack([rng.uniform(-1, 1, shape) for rng in rngs]).astype(np.float32)
            size = np.abs(noise).max((1, 2, 3))
        else:
            noise = np.stack([rng.standard_normal(shape) for rng in rngs]).astype(np.float32)
            size = lengths(noise)
        return self.project(origin + np.float32(self.epsilon) * noise / _over(size, noise), origin)

    def distance(self, x: Array, origin: Array) -> Array:
        """(N,) in float64."""
        delta = x.astype(np.float64) - origin
        return np.abs(delta).max((1, 2, 3)) if self.norm is Norm.LINF else lengths(delta)

    def allows(self, x: Array, origin: Array) -> Array:
        """(N,) whether each image is within ε and has pixels in [0, 1]."""
        inside = (x >= 0).all((1, 2, 3)) & (x <= 1).all((1, 2, 3))
        return inside & (self.distance(x, origin) <= self.epsilon * (1 + 1e-5) + _SLACK)

    def rounded(self, x: Array, origin: Array) -> Array:
        """The images as 8-bit files hold them, still within ε: rounded, in L∞ no further than the last level.

        Where ε is less than a grey level, that is the original.
        """
        levels = np.rint(x.astype(np.float64) * 255)
        if self.norm is Norm.LINF:
            low = np.ceil((origin - self.epsilon) * 255 - 1e-4)
            high = np.floor((origin + self.epsilon) * 255 + 1e-4)
            levels = np.clip(levels, low, np.maximum(high, low))
        return (np.clip(levels, 0, 255) / 255).astype(np.float32)


ANYWHERE = Threat(1.0)
"""Every image: for attacks that make the distance small and keep within none."""


def parse_epsilon(text: str) -> float:
    """ε from ``8/255`` or ``0.031``.

    Raises:
        UserError: It is no number.
    """
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError):
        raise UserError(f"epsilon must be a number, got {text!r}", hint="for example 8/255 or 0.03") from None


def lengths(delta: Array) -> Array:
    """(N,) the L2 norm of each of (N, C, H, W)."""
    found: Array = np.sqrt((delta.astype(np.float64) ** 2).sum((1, 2, 3)))
    return found


def _over(values: Array, like: Array) -> Array:
    """(N,) → (N, 1, 1, 1) in the other's type."""
    return values.reshape(-1, 1, 1, 1).astype(like.dtype)
