"""What all attacks share: images that still resist, and a victim that alone decides whether one is fooled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..losses import margin
from ..threat import Threat, lengths

Array = np.ndarray[Any, Any]
Victim = Callable[[Array], Array]
"""(N, C, H, W) float32 in [0, 1] → logits (N, K): the file or engine that is judged."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Images to be misclassified.

    Attributes:
        images: (N, C, H, W) float32 in [0, 1].
        labels: (N,) int64, what they show.
        threat: What may be changed.
        victim: Says what a changed image is taken for.
        rngs: One source of random numbers an image, so that a result does not depend on its neighbours.
    """

    images: Array
    labels: Array
    threat: Threat
    victim: Victim
    rngs: Sequence[np.random.Generator]

    def __len__(self) -> int:
        return len(self.images)


class Search:
    """Which images of a problem are fooled so far, and by what.

    Args:
        problem: The images.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.adversarial = problem.images.copy()
        self.broken = np.zeros(len(problem), bool)

    @property
    def alive(self) -> Array:
        """Indices of the images that still resist."""
        return np.flatnonzero(~self.broken)

    def judge(self, index: Array, candidates: Array) -> Array:
        """Show candidates to the victim; those that fool it are kept.

        Args:
            index: (n,) which images they are made of.
            candidates: (n, C, H, W), within the threat.

        Returns:
            (n,) the margin of the true class: at most 0 where the victim is fooled, −∞ where its answer is
            not finite, which counts as fooled.
        """
        if not len(index):
            return np.empty(0)
        margins = margins_of(self.problem.victim(candidates), self.problem.labels[index])
        new = np.flatnonzero((margins <= 0) & self._wanted(index, candidates))
        self._keep(index[new], candidates[new])
        return margins

    def _wanted(self, index: Array, candidates: Array) -> Array:
        """Whether each candidate would be kept if it fooled the victim: the first one is."""
        wanted: Array = ~self.broken[index]
        return wanted

    def _keep(self, index: Array, candidates: Array) -> None:
        self.adversarial[index] = candidates
        self.broken[index] = True


class NearestSearch(Search):
    """Goes on with images that are fooled, and keeps of each what fools it nearest to the original, in L2.

    Candidates beyond the threat are shown to the victim, and not kept.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.distance = np.full(len(problem), np.inf)

    def _wanted(self, index: Array, candidates: Array) -> Array:
        origin = self.problem.images[index]
        nearer = lengths(candidates - origin) < self.distance[index]
        return nearer & self.problem.threat.allows(candidates, origin)

    def _keep(self, index: Array, candidates: Array) -> None:
        super()._keep(index, candidates)
        self.distance[index] = lengths(candidates - self.problem.images[index])


def margins_of(logits: Array, labels: Array) -> Array:
    """:func:`~..losses.margin`, −∞ for logits that are not finite.

    A tie counts as fooled where the label is not the first maximum, as ``argmax`` answers.
    """
    finite = np.asarray(np.isfinite(logits).all(1))
    with np.errstate(invalid="ignore"):
        found = margin(np.where(finite[:, None], logits, 0), labels)
    tied = (found == 0) & (logits.argmax(1) == labels)
    return np.where(finite, np.where(tied, np.finfo(np.float64).tiny, found), -np.inf)
