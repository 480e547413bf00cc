"""Per image what each attack did, and the figures that follow from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sad_runtime.labelled import Share, share

from .oracles import Array, Counts
from .plan import Stage
from .threat import Threat


@dataclasses.dataclass(frozen=True)
class Row:
    """What one stage did.

    Attributes:
        stage: The attacks.
        broken: (N,) which images it misclassified; False also where it did not try.
        alone: Accuracy left by it alone; None where it saw survivors only.
        worst: Accuracy left by it and all before it.
        counts: Passes.
        seconds: Of CPU.
    """

    stage: Stage
    broken: Array
    alone: Share | None
    worst: Share
    counts: Counts
    seconds: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One subject under one threat.

    Attributes:
        name: Of the subject.
        threat: What was allowed.
        clean: (N,) which images are classified as their label, unattacked.
        rows: In the order they were run.
        adversarial: (N, C, H, W) an image that fools the subject, or the original.
        rounded: (N,) of the broken images, which still fool it as 8-bit files within ε.
        non_finite: Answers to clean images that are not finite; they count as wrong.
    """

    name: str
    threat: Threat
    clean: Array
    rows: tuple[Row, ...]
    adversarial: Array
    rounded: Array
    non_finite: int = 0

    @property
    def robust(self) -> Array:
        """(N,) which images resist everything."""
        left = self.clean.copy()
        for row in self.rows:
            left &= ~row.broken
        return left

    @property
    def worst_case(self) -> Share:
        """Accuracy in the worst case over all attacks, image by image."""
        return share(self.robust)

    @property
    def clean_accuracy(self) -> Share:
        """Unattacked."""
        return share(self.clean)

    @property
    def rounded_worst_case(self) -> Share:
        """As :attr:`worst_case`, counting only attacked images that can be saved as 8-bit files."""
        return share(self.clean & ~self.rounded)

    def alone(self, fits: Callable[[Stage], bool]) -> float | None:
        """Lowest accuracy that a screening that fits left; None without one."""
        found = [row.alone.percent for row in self.rows if row.alone is not None and fits(row.stage)]
        return min(found, default=None)


def merged(count: int, results: Sequence[Any]) -> tuple[Array, dict[int, Array], Counts, float]:
    """Results of a stage's tasks as one: broken (N,), adversarial image by index, passes, seconds."""
    images: dict[int, Array] = {}
    broken, counts, seconds = np.zeros(count, bool), Counts(), 0.0
    for result in results:
        for i, image in zip(result.index[result.broken], result.adversarial, strict=True):
            images.setdefault(int(i), image)
        broken[result.index[result.broken]] = True
        counts.add(result.counts)
        seconds += result.seconds
    return broken, images, counts, seconds
