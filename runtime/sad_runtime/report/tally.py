"""Counts over all rows, listed or not."""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Callable, Container, Iterable

from ..results import Row

BINS = 10
"""Confidence is counted in this many equal parts of [0, 1]."""

EXAMPLES = 20
"""Failures shown for every error code."""


class Kind(enum.IntEnum):
    """What a row is listed as, the most wanted first."""

    PICTURED = 0
    FAILED = 1
    CHANGED = 2
    OTHER = 3


@dataclasses.dataclass
class Tally:
    """What the summary shows.

    Attributes:
        images: Rows.
        labels: Predictions by label.
        confidences: Predictions by part of [0, 1]; the last part holds 1.
        compared: Predictions whose plain label is known.
        changed: Those that are another than the first pass gave, which is recalibrated too.
        errors: Failures by code.
        examples: The first failures of each code, (path, message).
        kinds: Rows by kind.
        lost: Predictions whose picture should have been kept, but belongs to an earlier run.
    """

    images: int = 0
    labels: Counter[int] = dataclasses.field(default_factory=Counter)
    confidences: list[int] = dataclasses.field(default_factory=lambda: [0] * BINS)
    compared: int = 0
    changed: int = 0
    errors: Counter[str] = dataclasses.field(default_factory=Counter)
    examples: dict[str, list[tuple[str, str]]] = dataclasses.field(default_factory=dict)
    kinds: Counter[Kind] = dataclasses.field(default_factory=Counter)
    lost: int = 0

    @property
    def failed(self) -> int:
        """Rows without a prediction."""
        return self.errors.total()


def tally(
    rows: Iterable[Row], pictured: Container[str], lacking: Callable[[str], bool] = lambda name: False
) -> Tally:
    """Count the rows of a run; memory grows with the classes and error codes, not with the rows.

    Args:
        rows: All of them.
        pictured: Names of the images with pictures.
        lacking: Whether an image should have a picture and has none.
    """
    counts = Tally()
    for row in rows:
        counts.images += 1
        counts.kinds[kind_of(row, pictured)] += 1
        if row.error is not None:
            code, message = row.error
            counts.errors[code] += 1
            examples = counts.examples.setdefault(code, [])
            if len(examples) < EXAMPLES:
                examples.append((row.path, message))
            continue
        label, _, probability = row.ranking[0]
        counts.labels[label] += 1
        counts.confidences[min(int(probability * BINS), BINS - 1)] += 1
        counts.compared += row.plain is not None
        counts.changed += row.changed
        counts.lost += lacking(row.path)
    return counts


def kind_of(row: Row, pictured: Container[str]) -> Kind:
    """The first kind that fits the row."""
    if row.error is not None:
        return Kind.FAILED
    if row.path in pictured:
        return Kind.PICTURED
    return Kind.CHANGED if row.changed else Kind.OTHER
