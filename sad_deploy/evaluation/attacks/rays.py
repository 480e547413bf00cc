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

PATIENCE = 500
FAR = 1.5
"""After so many queries an image is given up whose boundary is still so many ε away: benchmarks/rays.py."""


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
    """One row an image: the best direction and the distance along it.

    Images go on at the same pace, a query each at a time, whether they try a flip or look for the boundary:
    the victim gets all of them in one batch, and of each it is asked what it would be asked of it alone.
    """

    def __init__(self, problem: Problem, queries: int) -> None:
        self.problem, self.queries = problem, queries
        self.search = Search(problem)
        n = len(problem)
        self.signs = np.ones((n, problem.images[0].size), np.float32)
        self.near, self.far = np.zeros(n), np.ones(n)  # the boundary is between
        self.halving = np.zeros(n, bool)
        self.level, self.block = np.zeros(n, int), np.full(n, -1)  # first the direction as it is
        self.asked, self.given_up = np.zeros(n, int), np.zeros(n, bool)
        self.tolerance = _TOLERANCE / self.signs.shape[1] ** 0.5

    def run(self) -> Search:
        while True:
            index = self.search.alive
            index = index[(self.asked[index] < self.queries) & ~self.given_up[index]]
            if not len(index):
                return self.search
            halving = self.halving[index]
            directions = np.where(halving[:, None], self.signs[index], self._flipped(index))
            distance = np.where(halving, (self.near + self.far)[index] / 2, self.far[index])
            fooled = self._fools(index, directions, distance)
            self._halve(index[halving], distance[halving], fooled[halving])
            self._keep(index[~halving], directions[~halving], fooled[~halving])
            self._give_up(index[self.asked[index] == PATIENCE])

    def _give_up(self, index: Array) -> None:
        """Leave images whose boundary is far."""
        if len(index):
            boundary = self._points(index, self.signs[index], self.far[index])
            distance = self.problem.threat.distance(boundary, self.problem.images[index])
            self.given_up[index] = distance > FAR * self.problem.threat.epsilon

    def _blocks(self, index: Array) -> tuple[Array, Array]:
        """Where each image's block begins, and how wide its blocks are; the last one may be cut off."""
        width = -(-self.signs.shape[1] // 2 ** self.level[index])
        return self.block[index] * width, width

    def _flipped(self, index: Array) -> Array:
        """The best directions with the signs of one block turned."""
        start, width = self._blocks(index)
        columns = np.arange(self.signs.shape[1])
        inside = (columns >= start[:, None]) & (columns < (start + width)[:, None])
        return np.where(inside, -self.signs[index], self.signs[index])

    def _halve(self, index: Array, distance: Array, fooled: Array) -> None:
        """A step of the search for the boundary."""
        self.far[index[fooled]] = distance[fooled]
        self.near[index[~fooled]] = distance[~fooled]
        self.halving[index] = self.far[index] - self.near[index] > self.tolerance

    def _keep(self, index: Array, directions: Array, fooled: Array) -> None:
        """Keep directions along which the boundary is nearer, and go on to the next block."""
        nearer = index[fooled]
        self.signs[nearer], self.near[nearer], self.halving[nearer] = directions[fooled], 0, True
        start, width = self._blocks(index)
        self.block[index] += 1
        ended = start + width >= self.signs.shape[1]
        # Below single pixels there is nothing to halve: once more from the top.
        self.level[index[ended]] = np.where(width[ended] > 1, self.level[index[ended]] + 1, 0)
        self.block[index[ended]] = 0

    def _points(self, index: Array, signs: Array, distance: Array) -> Array:
        """Images at a distance along each direction."""
        origin = self.problem.images[index]
        step = signs.reshape(origin.shape) * distance.reshape(-1, 1, 1, 1).astype(np.float32)
        moved: Array = np.clip(origin + step, 0, 1)
        return moved

    def _fools(self, index: Array, signs: Array, distance: Array) -> Array:
        """Whether the point at a distance along each direction is misclassified."""
        origin, points = self.problem.images[index], self._points(index, signs, distance)
        self.asked[index] += 1
        allowed = self.problem.threat.allows(points, origin)
        fooled = np.empty(len(index), bool)
        fooled[allowed] = self.search.judge(index[allowed], points[allowed]) <= 0
        beyond = ~allowed
        if beyond.any():
            labels = self.problem.labels[index[beyond]]
            fooled[beyond] = margins_of(self.problem.victim(points[beyond]), labels) <= 0
        return fooled
