"""Square Attack (Andriushchenko et al., ECCV 2020): random squares, from scores alone.

A change of a random place and sign is tried; it stays if the margin of the true class shrinks. Squares get
smaller as queries are used up. In L∞ (Algorithm 2) the start is vertical stripes, and a square is ±ε. In L2
(Algorithm 3) the start is tiles of a pyramid up and one down, and what a second window holds of the budget
moves into the square, in that shape: the change always has length ε but for clipping.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from sad_runtime.choices import Norm

from .search import Array, Problem, Search

FIRST_SHARE = 0.8
"""Share of the image that the first squares cover."""

_SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After how many of 10,000 queries the share is halved."""

_TILES = 5
"""Along each side, at the start in L2."""

_TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class Square:
    """For L∞ and L2.

    Attributes:
        queries: Most scores asked for an image.
    """

    queries: int = 2000

    def run(self, problem: Problem) -> Search:
        """Attack every image."""
        search, images, threat = Search(problem), problem.images, problem.threat
        epsilon = np.float32(threat.epsilon)
        start, change = (_stripes, _square) if threat.norm is Norm.LINF else (_tiles, _moved)
        n, _, height, width = images.shape
        best = threat.project(
            np.stack([start(rng, x, epsilon) for rng, x in zip(problem.rngs, images, strict=True)]), images
        )
        margins = search.judge(np.arange(n), best)
        for query in range(1, self.queries):
            index = search.alive
            if not len(index):
                break
            side = self._side(query, height, width, threat.norm)
            tried = [change(problem.rngs[i], best[i], images[i], side, epsilon) for i in index]
            candidates = threat.project(np.stack(tried), images[index])
            found = search.judge(index, candidates)
            better = found < margins[index]
            best[index[better]], margins[index[better]] = candidates[better], found[better]
        return search

    def _side(self, query: int, height: int, width: int, norm: Norm) -> int:
        """Side of the square for a query; in L2 it is odd and at least 3, so that it has a middle."""
        used = query * 10_000 / self.queries
        share = FIRST_SHARE / 2 ** sum(used > bound for bound in _SCHEDULE)
        largest = min(height, width)
        side: int = round((share * height * width) ** 0.5)
        if norm is Norm.LINF:
            return min(max(side, 1), largest)
        return min(max(side, 3) // 2 * 2 + 1, largest)


def _stripes(rng: np.random.Generator, origin: Array, epsilon: np.float32) -> Array:
    """(C, H, W) with a sign a channel and column."""
    channels, _, width = origin.shape
    striped: Array = origin + rng.choice([-epsilon, epsilon], (channels, 1, width)).astype(np.float32)
    return striped


def _square(rng: np.random.Generator, image: Array, origin: Array, side: int, epsilon: np.float32) -> Array:
    """(C, H, W) with a square at ±ε, one sign a channel."""
    changed, part = image.copy(), _window(rng, origin, side)
    signs = rng.choice([-epsilon, epsilon], (len(origin), 1, 1)).astype(np.float32)
    changed[part] = origin[part] + signs
    return changed


def _tiles(rng: np.random.Generator, origin: Array, epsilon: np.float32) -> Array:
    """(C, H, W) with tiles all over, one sign a channel and tile."""
    channels, height, width = origin.shape
    side = max(min(height, width) // _TILES, 1)
    delta = np.zeros(origin.shape)
    for top in range(0, height - side + 1, side):
        for left in range(0, width - side + 1, side):
            delta[:, top : top + side, left : left + side] = _tile(rng, side) * _signs(rng, channels)
    return _at_length(origin, delta, epsilon)


def _moved(rng: np.random.Generator, image: Array, origin: Array, side: int, epsilon: np.float32) -> Array:
    """(C, H, W) with a tile in one window, and nothing in another whose share of the budget it takes."""
    delta = image.astype(np.float64) - origin
    there, emptied = _window(rng, origin, side), _window(rng, origin, side)
    inside = np.zeros(delta.shape, bool)
    inside[there] = inside[emptied] = True
    held = np.where(inside, delta**2, 0).sum((1, 2), keepdims=True)
    unused = max(float(epsilon) ** 2 - float((delta**2).sum()), 0) / len(delta)
    old = delta[there] / (np.sqrt((delta[there] ** 2).sum((1, 2), keepdims=True)) + _TINY)
    new = _tile(rng, side) * _signs(rng, len(delta)) + old
    new *= np.sqrt(held + unused) / (np.sqrt((new**2).sum((1, 2), keepdims=True)) + _TINY)
    delta[emptied] = 0
    delta[there] = new
    return _at_length(origin, delta, epsilon)


def _window(rng: np.random.Generator, origin: Array, side: int) -> tuple[slice, slice, slice]:
    """A random square of all channels."""
    _, height, width = origin.shape
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    return slice(None), slice(top, top + side), slice(left, left + side)


def _signs(rng: np.random.Generator, channels: int) -> Array:
    return rng.choice([-1.0, 1.0], (channels, 1, 1))


def _tile(rng: np.random.Generator, side: int) -> Array:
    """(side, side) of length 1: a pyramid in one half and its negative in the other (equation 2)."""
    first = side // 2
    tile = np.zeros((side, side))
    tile[:first] = _pyramid(first, side)
    tile[first:] = -_pyramid(side - first, side)
    tile /= max(float(np.sqrt((tile**2).sum())), _TINY)
    return tile.T if rng.random() < 0.5 else tile


def _pyramid(height: int, width: int) -> Array:
    """(height, width): the sum over r of 1/(r + 1)² on rectangles of radius r around the middle; length 1."""
    rows = np.abs(np.arange(height) - height // 2)[:, None]
    columns = np.abs(np.arange(width) - width // 2)[None]
    distance = np.maximum(rows, columns)
    radii = np.arange(max(height, width) // 2 + 1)
    total: Array = ((distance[None] <= radii[:, None, None]) / (radii[:, None, None] + 1.0) ** 2).sum(0)
    length = np.sqrt((total**2).sum())
    return total / length if length > 0 else total


def _at_length(origin: Array, delta: Array, epsilon: np.float32) -> Array:
    """The original plus a change of length ε."""
    scale = float(epsilon) / max(float(np.sqrt((delta**2).sum())), _TINY)
    moved: Array = (origin + scale * delta).astype(np.float32)
    return moved
