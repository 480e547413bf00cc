"""How right answers to labelled images are: in all, by class, what is taken for what, and confidence.

Intervals are Clopper and Pearson's; two networks on the same images are compared by McNemar's exact test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..intervals import clopper_pearson, mcnemar
from ..prediction import softmax

Array = np.ndarray[Any, Any]

BINS = 10
"""Of the calibration curve, equally wide in confidence."""


@dataclasses.dataclass(frozen=True)
class Bin:
    """Answers of about one confidence.

    Attributes:
        images: How many.
        confidence: Their mean, in percent.
        accuracy: Share that is right, in percent.
    """

    images: int
    confidence: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Share:
    """A share of the images, with its 95 % interval.

    Attributes:
        count: How many.
        images: Out of how many.
    """

    count: int
    images: int

    @property
    def percent(self) -> float:
        """100 · count / images."""
        return 100 * self.count / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """In percent."""
        low, high = clopper_pearson(self.count, self.images)
        return 100 * low, 100 * high

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        low, high = self.interval
        return {"percent": self.percent, "count": self.count, "images": self.images, "interval": [low, high]}


def share(mask: Array) -> Share:
    """Of all images."""
    return Share(int(mask.sum()), len(mask))


@dataclasses.dataclass(frozen=True)
class Scores:
    """One network on labelled images, not attacked.

    Attributes:
        accuracy: In all.
        by_class: For every class that occurs, in the order of the logits.
        confusion: (K, K) images of a class (row) that are taken for another (column).
        calibration: The bins that hold images; none where confidence is not known.
        calibration_error: Mean of |confidence − accuracy| over the images, in points (Guo et al., 2017);
            None likewise.
    """

    accuracy: Share
    by_class: dict[int, Share]
    confusion: Array
    calibration: tuple[Bin, ...]
    calibration_error: float | None

    @classmethod
    def of(cls, answers: Array, labels: Array, classes: int, confidences: Array | None = None) -> Scores:
        """Of answers (N,), −1 for none, which is wrong, to images with labels (N,).

        Args:
            answers: Class of each image.
            labels: What it shows.
            classes: K.
            confidences: (N,) in [0, 1], where they are known.
        """
        right, answered = answers == labels, answers >= 0
        confusion = np.zeros((classes, classes), np.int64)
        np.add.at(confusion, (labels[answered], answers[answered]), 1)
        by_class = {int(label): share(right[labels == label]) for label in np.unique(labels)}
        bins: tuple[Bin, ...] = () if confidences is None else tuple(_bins(confidences, right))
        error = sum(each.images * abs(each.confidence - each.accuracy) for each in bins) / len(labels)
        return cls(share(right), by_class, confusion, bins, error if bins else None)

    @classmethod
    def of_logits(cls, logits: Array, labels: Array) -> Scores:
        """Of logits (N, K). An answer that is not finite is wrong."""
        finite = np.asarray(np.isfinite(logits).all(1))
        z = np.where(finite[:, None], logits, 0)
        answers = np.where(finite, z.argmax(1), -1)
        return cls.of(answers, labels, logits.shape[1], softmax(z).max(1))

    def mistaken(self, most: int) -> list[tuple[int, int, int]]:
        """The most frequent mistakes: true class, answer, images."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = (divmod(int(i), wrong.shape[1]) for i in order)
        return [(true, said, int(wrong[true, said])) for true, said in pairs if wrong[true, said]]

    def as_dict(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """For JSON."""
        return {
            "accuracy": self.accuracy.as_dict(),
            "by_class": {classes[label]: each.as_dict() for label, each in self.by_class.items()},
            "confusion": self.confusion.tolist(),
            "calibration": [dataclasses.asdict(each) for each in self.calibration],
            "calibration_error_points": self.calibration_error,
        }


def _bins(confidences: Array, right: Array) -> Iterator[Bin]:
    index = np.minimum((confidences * BINS).astype(int), BINS - 1)
    for i in range(BINS):
        mine = index == i
        if mine.any():
            yield Bin(int(mine.sum()), 100 * float(confidences[mine].mean()), 100 * float(right[mine].mean()))


@dataclasses.dataclass(frozen=True)
class Paired:
    """The same images in two subjects.

    Attributes:
        both: Robust in both.
        only_defended: In the first alone.
        only_undefended: In the second alone.
        neither: In none.
    """

    both: int
    only_defended: int
    only_undefended: int
    neither: int

    @classmethod
    def of(cls, defended: Array, undefended: Array) -> Paired:
        """From (N,) masks."""
        return cls(
            int((defended & undefended).sum()),
            int((defended & ~undefended).sum()),
            int((~defended & undefended).sum()),
            int((~defended & ~undefended).sum()),
        )

    @property
    def p(self) -> float:
        """Of McNemar's exact test, two-sided."""
        return mcnemar(self.only_defended, self.only_undefended)

    @property
    def points(self) -> float:
        """What the defence gained, in points of accuracy."""
        n = self.both + self.only_defended + self.only_undefended + self.neither
        return 100 * (self.only_defended - self.only_undefended) / n

    @property
    def is_significant(self) -> bool:
        """At 5 %."""
        return self.p < 0.05

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "points": self.points, "p": self.p}


def out_of_step(right: Share, classes: int) -> tuple[str, str] | None:
    """Whether labels are another network's: what is wrong, and what to do; None if all is well.

    Args:
        right: Unattacked images that are classified as their label.
        classes: K.
    """
    if right.count == 0:
        return (
            f"none of {right.images} images is classified as its label",
            "are labels, preprocessing and classes those of this network?",
        )
    if right.interval[1] < 200 / classes and classes > 2 and right.images >= 20:
        return (
            f"clean accuracy is {right.percent:.1f} %, that of chance among {classes} classes",
            "labels are out of step with the network's outputs, or preprocessing is another",
        )
    return None
