"""Carlini and Wagner's L2 attack (S&P 2017, section VI A) with the constant c given, in tanh space.

    minimise ‖x(w) − x₀‖² + c · max(z_y − max_{i≠y} z_i, −κ),   x(w) = (tanh w + 1) / 2

by Adam over w, from x₀. A larger c fools more images and goes further; the original searches for the least c
that fools, papers that report "C&W, c = 0.2" do not. Every step is judged, and the nearest image that fools
is kept. There is no ε: what it gives are a share of fooled images and their distances.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ..losses import Differentiable, margin
from .adam import Adam
from .search import Array, NearestSearch, Problem

_INSIDE = 0.999999
"""Black and white pixels are drawn in a little, as tanh reaches neither; the original's factor."""


@dataclasses.dataclass(frozen=True)
class CarliniWagner:
    """One run with one c.

    Attributes:
        source: What gives the gradient.
        constant: c.
        steps: Of Adam; each takes two gradients, as the strongest wrong class is known after the first.
        learning_rate: Of Adam, in w.
        confidence: κ, in logits.
        direct: Whether the source's logits are the victim's: only what they misclassify is then shown to it.
    """

    source: Differentiable
    constant: float = 1.0
    steps: int = 50
    learning_rate: float = 0.01
    confidence: float = 0.0
    direct: bool = True

    def run(self, problem: Problem) -> NearestSearch:
        """Attack every image."""
        search, origin, labels = NearestSearch(problem), problem.images.astype(np.float64), problem.labels
        w = np.arctanh(_INSIDE * (2 * origin - 1))
        adam, everyone = Adam(w.shape, self.learning_rate), np.arange(len(problem))
        for _ in range(self.steps):
            x = (np.tanh(w) + 1) / 2
            shown = x.astype(np.float32)
            logits, slope = self.source.of_cotangent(shown, lambda z: self._slope(z, labels))
            wrong = everyone
            if self.direct:
                wrong = np.flatnonzero((logits.argmax(1) != labels) | ~np.isfinite(logits).all(1))
            search.judge(wrong, shown[wrong])
            gradient = 2 * (x - origin) + self.constant * slope.astype(np.float64)
            w += adam.change(gradient * 2 * x * (1 - x))
        last = ((np.tanh(w) + 1) / 2).astype(np.float32)
        search.judge(everyone, last)
        return search

    def _slope(self, logits: Array, labels: Array) -> Array:
        """(N, K): ∂/∂z of the second term over c."""
        k = logits.shape[1]
        own = np.eye(k)[labels]
        strongest = np.where(own > 0, -np.inf, logits).argmax(1)
        active = margin(logits, labels) > -self.confidence
        slope: Array = active[:, None] * (own - np.eye(k)[strongest])
        return slope
