"""How right the rows of a run are, in a few bytes a row."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import ErrorCode
from ..results import Row
from .labels import Labels
from .scores import Paired, Scores, out_of_step

DEFENDED, FIRST_PASS, PLAIN = "defended", "first pass, recalibrated", "classifier"
_UNKNOWN = -1


class RunScores:
    """Counts rows as they come; an image without a label or that cannot be read counts for nothing.

    Args:
        labels: What the images show.

    Attributes:
        unlabelled: Images that nothing gives a label.
        example: The first of them.
    """

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.unlabelled = 0
        self.example = ""
        self._truth, self._answer, self._plain = array("i"), array("i"), array("i")
        self._confidence = array("d")

    def add(self, rows: Iterable[Row]) -> None:
        """Count some rows. An answer that is not finite is wrong."""
        for row in rows:
            is_wrong = row.error is not None and row.error.code is ErrorCode.NON_FINITE
            if row.error is not None and not is_wrong:
                continue
            truth = self.labels.of(row.path)
            if truth is None:
                self.unlabelled += 1
                self.example = self.example or row.path
                continue
            self._truth.append(truth)
            self._answer.append(_UNKNOWN if row.label is None else row.label)
            self._confidence.append(row.probability or 0.0)
            self._plain.append(_UNKNOWN if row.plain is None else row.plain.label)

    def __len__(self) -> int:
        """Images that count."""
        return len(self._truth)

    @property
    def networks(self) -> dict[str, Scores]:
        """By name: the defended answer and, where rows have it, that of the first pass; or the classifier's.

        Rows hold no confidence of the first pass.
        """
        truth, answer, plain = (np.array(each, np.int64) for each in (self._truth, self._answer, self._plain))
        classes = len(self.labels.classes)
        own = Scores.of(answer, truth, classes, np.array(self._confidence))
        if not (plain != _UNKNOWN).any():
            return {PLAIN: own}
        return {DEFENDED: own, FIRST_PASS: Scores.of(plain, truth, classes)}

    @property
    def paired(self) -> Paired | None:
        """The defended answers beside those of the first pass, image by image; None without any."""
        truth, answer, plain = (np.array(each) for each in (self._truth, self._answer, self._plain))
        return Paired.of(answer == truth, plain == truth) if (plain != _UNKNOWN).any() else None

    @property
    def problem(self) -> tuple[str, str] | None:
        """What is wrong with the labels, and what to do: an alarm in place of figures; None if nothing is."""
        if not len(self):
            why, hint = self.labels.why_missing()
            return f"none of {self.unlabelled} images has a label: {why}, for example {self.example}", hint
        return out_of_step(next(iter(self.networks.values())).accuracy, len(self.labels.classes))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        paired = self.paired
        return {
            "labels": self.labels.name,
            "images": len(self),
            "unlabelled": self.unlabelled,
            "classes": list(self.labels.classes),
            "networks": {name: each.as_dict(self.labels.classes) for name, each in self.networks.items()},
            "paired": None if paired is None else paired.as_dict(),
        }
