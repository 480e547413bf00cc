"""RayS (Chen and Gu, KDD 2020): distances to the boundary along directions of signs, by labels alone.

The best direction is refined by flipping the signs of blocks, halves of the image first, then halves of
these. A flip is kept if the boundary is nearer along the new direction, which one query mostly refutes; where
it does not, bisection finds the distance. An attacker who sees no more than the predicted class does this.

In L2 the same directions are searched, and a point counts where its change is within ε. Along them every
pixel moves, which is what L∞ allows; in L2 other attacks may go further.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .search import Array, Problem, Search, margins_of

_TOLERANCE = 1e-3
"""Of a distance, in L2: where bisection ends."""


@dataclasses.dataclass(frozen=True)
class RayS:
    """For L∞ and L2.

    Attributes:
        queries: Most labels asked for an image.
    """

    queries: int = 2000

    def run(self, problem: Problem) -> Search:
        """Attack every image."""
        return _Rays(problem, self.queries).run()


class _Rays:
    """One row an image: the best direction and the distance along it."""

    def __init__(self, problem: Problem, queries: int) -> None:
        self.problem, self.queries = problem, queries
        self.search = Search(problem)
        n = len(problem)
        self.signs = np.ones((n, problem.images[0].size), np.float32)
        self.distance = np.ones(n)  # the whole range of pixels
        self.asked = np.zeros(n, int)
        self.tolerance = _TOLERANCE / self.signs.shape[1] ** 0.5

    def run(self) -> Search:
        everyone = np.arange(len(self.problem))
        reached = self._fools(everyone, self.signs, np.ones(len(everyone)))
        self._bisect(everyone[reached], self.signs[reached])
        size, level, block = self.signs.shape[1], 0, 0
        while True:
            width = -(-size // 2**level)
            start, stop = block * width, min(size, (block + 1) * width)
            index = self.search.alive
            index = index[self.asked[index] < self.queries]
            if not len(index):
                return self.search
            flipped = self.signs[index]
            flipped[:, start:stop] *= -1
            nearer = self._fools(index, flipped, self.distance[index])
            self._bisect(index[nearer], flipped[nearer])
            block += 1
            if block == 2**level or stop == size:
                # Below single pixels there is nothing to halve: once more from the top.
                level, block = (level + 1 if width > 1 else 0), 0

    def _fools(self, index: Array, signs: Array, distance: Array) -> Array:
        """Whether the point at a distance along each direction is misclassified."""
        origin = self.problem.images[index]
        step = signs.reshape(origin.shape) * distance.reshape(-1, 1, 1, 1).astype(np.float32)
        points = np.clip(origin + step, 0, 1)
        self.asked[index] += 1
        allowed = self.problem.threat.allows(points, origin)
        fooled = np.empty(len(index), bool)
        fooled[allowed] = self.search.judge(index[allowed], points[allowed]) <= 0
        beyond = ~allowed
        if beyond.any():
            labels = self.problem.labels[index[beyond]]
            fooled[beyond] = margins_of(self.problem.victim(points[beyond]), labels) <= 0
        return fooled

    def _bisect(self, index: Array, signs: Array) -> None:
        """Find the boundary along directions at whose end the class is another one, and keep these."""
        low, high = np.zeros(len(index)), self.distance[index].copy()
        self.signs[index] = signs
        searching = np.flatnonzero(self.asked[index] < self.queries)
        while len(searching):
            middle = (low[searching] + high[searching]) / 2
            fooled = self._fools(index[searching], signs[searching], middle)
            high[searching[fooled]] = middle[fooled]
            low[searching[~fooled]] = middle[~fooled]
            unfinished = (high - low)[searching] > self.tolerance
            unfinished &= ~self.search.broken[index[searching]]
            searching = searching[unfinished & (self.asked[index[searching]] < self.queries)]
        self.distance[index] = high
