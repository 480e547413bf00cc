"""Square Attack (Andriushchenko et al., ECCV 2020), L∞: random squares at ±ε, from scores alone.

It starts from vertical stripes. A square of random place and sign is tried; it stays if the margin of the
true class shrinks. Squares get smaller as queries are used up.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .search import Array, Problem, Search

FIRST_SHARE = 0.8
"""Share of the image that the first squares cover."""

_SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After how many of 10,000 queries the share is halved."""


@dataclasses.dataclass(frozen=True)
class Square:
    """For L∞ alone.

    Attributes:
        queries: Most scores asked for an image.
    """

    queries: int = 2000

    def run(self, problem: Problem) -> Search:
        """Attack every image."""
        search, images, epsilon = Search(problem), problem.images, np.float32(problem.threat.epsilon)
        n, channels, height, width = images.shape
        stripes = np.stack([rng.choice([-epsilon, epsilon], (channels, 1, width)) for rng in problem.rngs])
        best = np.clip(images + stripes.astype(np.float32), 0, 1)
        margins = search.judge(np.arange(n), best)
        for query in range(1, self.queries):
            index = search.alive
            if not len(index):
                break
            side = self._side(query, height, width)
            tried = best[index]
            for row, i in enumerate(index):
                _draw_square(problem.rngs[i], tried[row], images[i], side, epsilon)
            found = search.judge(index, tried)
            better = found < margins[index]
            best[index[better]], margins[index[better]] = tried[better], found[better]
        return search

    def _side(self, query: int, height: int, width: int) -> int:
        """Side of the square for a query."""
        used = query * 10_000 / self.queries
        share = FIRST_SHARE / 2 ** sum(used > bound for bound in _SCHEDULE)
        side: int = min(max(round((share * height * width) ** 0.5), 1), height, width)
        return side


def _draw_square(
    rng: np.random.Generator, image: Array, origin: Array, side: int, epsilon: np.float32
) -> None:
    """Put a square at ±ε, one sign a channel, into (C, H, W) in place."""
    channels, height, width = image.shape
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    signs = rng.choice([-epsilon, epsilon], (channels, 1, 1)).astype(np.float32)
    part = (slice(None), slice(top, top + side), slice(left, left + side))
    image[part] = np.clip(origin[part] + signs, 0, 1)
