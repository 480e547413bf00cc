"""Projected gradient descent (Madry et al., 2018), as the papers that report it run it: too weak to rely on.

A fixed step size of one loss stops short of what :mod:`.apgd` finds, most of all behind a defence.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ..losses import Differentiable, Loss
from .search import Array, Problem, Search


@dataclasses.dataclass(frozen=True)
class Pgd:
    """Steps along the gradient from a random start.

    Attributes:
        source: What gives the gradient.
        steps: How many.
        step_size: Of each, in pixels; None: 2.5 · ε / steps.
        samples: Gradients averaged a step, of points with noise of a tenth of ε around: expectation over
            transformation (Athalye et al., 2018). With 1, the point itself.
        random_start: Whether to start from a random point.
    """

    source: Differentiable
    steps: int = 100
    step_size: float | None = None
    samples: int = 1
    random_start: bool = True

    def run(self, problem: Problem) -> Search:
        """Attack every image; the victim judges the points of every step."""
        search, threat, loss = Search(problem), problem.threat, Loss("cross_entropy")
        size = np.float32(2.5 * threat.epsilon / self.steps if self.step_size is None else self.step_size)
        x = problem.images.copy()
        if self.random_start:
            noise = [rng.uniform(-1, 1, x.shape[1:]) for rng in problem.rngs]
            x = threat.project(x + np.float32(threat.epsilon) * np.stack(noise).astype(np.float32), x)
        for _ in range(self.steps):
            index = search.alive
            if not len(index):
                break
            labels = problem.labels[index]
            gradient = sum(
                loss(self.source, point, labels, labels).gradient
                for point in self._points(problem, x[index], index)
            )
            direction = threat.steepest(np.nan_to_num(np.asarray(gradient)))
            x[index] = threat.project(x[index] + size * direction, problem.images[index])
            search.judge(index, x[index])
        return search

    def _points(self, problem: Problem, x: Array, index: Array) -> list[Array]:
        if self.samples == 1:
            return [x]
        scale = problem.threat.epsilon / 10
        return [
            np.clip(
                x + np.stack([scale * problem.rngs[i].standard_normal(x.shape[1:]) for i in index]), 0, 1
            ).astype(np.float32)
            for _ in range(self.samples)
        ]
