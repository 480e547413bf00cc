"""One Pixel (Su et al., 2019): differential evolution over one pixel's place and colour, from scores alone.

A population of (row, column, colour) evolves by rand/1 without crossover, a + F·(b − c): a child takes the
place of its parent if the margin of the true class is smaller. An image is done when one candidate fools.

scipy's ``differential_evolution`` would do one image at a time, and be a dependency of its own; here a whole
generation of an image is one batch of the victim, and the arithmetic is the three lines of :meth:`_children`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .search import Array, Problem, Search

FACTOR = 0.5
"""F, as the paper has it."""


@dataclasses.dataclass(frozen=True)
class OnePixel:
    """Changes a single pixel, to any colour.

    Attributes:
        population: Candidates of a generation: the batch of the victim.
        generations: After the first, at most.
    """

    population: int = 400
    generations: int = 75

    def run(self, problem: Problem) -> Search:
        """Attack every image."""
        search = Search(problem)
        for i, rng in enumerate(problem.rngs):
            genes = self._first(rng, problem.images[i].shape)
            margins = self._judged(search, i, genes)
            for _ in range(self.generations):
                if search.broken[i]:
                    break
                children = self._children(rng, genes, problem.images[i].shape)
                found = self._judged(search, i, children)
                better = found <= margins
                genes[better], margins[better] = children[better], found[better]
        return search

    def _first(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """(population, 2 + C): places anywhere, colours around grey."""
        channels, height, width = shape
        places = rng.uniform(0, (height, width), (self.population, 2))
        colours = rng.normal(0.5, 0.5, (self.population, channels)).clip(0, 1)
        return np.concatenate([places, colours], 1)

    def _children(self, rng: np.random.Generator, genes: Array, shape: tuple[int, ...]) -> Array:
        """One child for each; places outside the image are drawn anew."""
        n, (_, height, width) = self.population, shape
        a, b, c = (genes[rng.permutation(n)] for _ in range(3))
        children: Array = a + FACTOR * (b - c)
        outside = (children[:, :2] < 0) | (children[:, :2] >= (height, width))
        anywhere = rng.uniform(0, (height, width), (n, 2))
        children[:, :2] = np.where(outside, anywhere, children[:, :2])
        children[:, 2:] = children[:, 2:].clip(0, 1)
        return children

    def _judged(self, search: Search, i: int, genes: Array) -> Array:
        """(population,) the margins of one image with each candidate's pixel."""
        candidates = np.repeat(search.problem.images[i][None], len(genes), 0)
        rows, columns = genes[:, :2].astype(int).T
        candidates[np.arange(len(genes)), :, rows, columns] = genes[:, 2:]
        return search.judge(np.full(len(genes), i), candidates)
