"""Accuracy without an attack: in all, by class, what is taken for what, and how right confidence is."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sad_runtime.prediction import softmax

from .oracles import Array
from .outcome import Share, share

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
class Clean:
    """One network on labelled images.

    Attributes:
        accuracy: In all.
        by_class: For every class that occurs, in the order of the logits.
        confusion: (K, K) images of a class (row) that are taken for another (column).
        calibration: The bins that hold images.
        calibration_error: Mean of |confidence − accuracy| over the images, in points (Guo et al., 2017).
    """

    accuracy: Share
    by_class: dict[int, Share]
    confusion: Array
    calibration: tuple[Bin, ...]
    calibration_error: float

    @classmethod
    def of(cls, logits: Array, labels: Array) -> Clean:
        """Of answers (N, K) to images with labels (N,). An answer that is not finite is wrong."""
        finite = np.asarray(np.isfinite(logits).all(1))
        z = np.where(finite[:, None], logits, 0)
        confidence = softmax(z).max(1)
        answers = z.argmax(1)
        right = (answers == labels) & finite
        confusion = np.zeros((logits.shape[1],) * 2, np.int64)
        np.add.at(confusion, (labels[finite], answers[finite]), 1)
        by_class = {int(label): share(right[labels == label]) for label in np.unique(labels)}
        index = np.minimum((confidence * BINS).astype(int), BINS - 1)
        bins = tuple(
            Bin(int(mine.sum()), 100 * float(confidence[mine].mean()), 100 * float(right[mine].mean()))
            for mine in (index == i for i in range(BINS))
            if mine.any()
        )
        error = sum(each.images * abs(each.confidence - each.accuracy) for each in bins) / len(labels)
        return cls(share(right), by_class, confusion, bins, error)

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
