"""ZOO (Chen et al., AISec 2017): Carlini and Wagner's loss, its gradient by coordinates, from scores alone.

    ∂f/∂xᵢ ≈ (f(x + h·eᵢ) − f(x − h·eᵢ)) / 2h,   f = max(z_y − max_{i≠y} z_i, 0)

Adam descends ‖x − x₀‖² + c·f in a few random coordinates at a time (the paper's ZOO-ADAM); the first term is
known and costs no query. Of logits or log-probabilities f is the same. c is searched for: ten times as large
while nothing fools, then halfway (on a logarithmic scale) between the largest that did not and the least that
did. Every query counts, at most ``queries`` an image.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .adam import Adam
from .search import Array, NearestSearch, Problem, margins_of


@dataclasses.dataclass(frozen=True)
class Zoo:
    """From scores alone; no ε, distances are what it makes small.

    Attributes:
        queries: Most scores asked for an image, over all c.
        constant: The first c.
        searches: How many c are tried.
        coordinates: Estimated at once: the batch of the victim is twice that.
        learning_rate: Of Adam, in pixels.
        difference: h, in pixels.
    """

    queries: int = 10_000
    constant: float = 1.0
    searches: int = 3
    coordinates: int = 32
    learning_rate: float = 0.05
    difference: float = 1e-3

    def run(self, problem: Problem) -> NearestSearch:
        """Attack every image."""
        search = NearestSearch(problem)
        for i in range(len(problem)):
            constant, failed, fooled = self.constant, 0.0, np.inf
            for part in range(self.searches):
                allowed = self.queries * (part + 1) // self.searches - self.queries * part // self.searches
                if self._descend(search, i, constant, allowed):
                    fooled = constant
                else:
                    failed = constant
                if not np.isfinite(fooled):
                    constant *= 10
                else:
                    constant = (failed * fooled) ** 0.5 if failed else constant / 10
        return search

    def _descend(self, search: NearestSearch, i: int, constant: float, queries: int) -> bool:
        """Whether some image on the way fooled the victim."""
        problem, rng = search.problem, search.problem.rngs[i]
        origin = problem.images[i].astype(np.float64).ravel()
        x, adam, succeeded = origin.copy(), Adam(origin.shape, self.learning_rate), False
        count = min(self.coordinates, len(x))
        while queries > 0:
            shown = x.astype(np.float32).reshape(1, *problem.images[i].shape)
            margin = float(search.judge(np.array([i]), shown)[0])
            succeeded, queries = succeeded or margin <= 0, queries - 1
            where = rng.choice(len(x), count, replace=False)
            gradient = 2 * (x - origin)[where]
            if margin > 0:
                if queries < 2 * count:
                    break
                gradient += constant * self._slopes(problem, i, x, where)
                queries -= 2 * count
            x[where] = np.clip(x[where] + adam.change(gradient, where), 0, 1)
        return succeeded

    def _slopes(self, problem: Problem, i: int, x: Array, where: Array) -> Array:
        """Central differences of the margin in some coordinates, one-sided at black and white."""
        count = len(where)
        points = np.repeat(x[None], 2 * count, 0)
        rows = np.arange(count)
        points[rows, where] = np.minimum(x[where] + self.difference, 1)
        points[count + rows, where] = np.maximum(x[where] - self.difference, 0)
        points = points.astype(np.float32)
        width = points[rows, where].astype(np.float64) - points[count + rows, where]
        shown = points.reshape(2 * count, *problem.images[i].shape)
        margins = margins_of(problem.victim(shown), np.full(2 * count, problem.labels[i]))
        margins = np.where(np.isfinite(margins), margins, 0)
        slopes: Array = (margins[:count] - margins[count:]) / width
        return slopes
