"""Counts over a run's rows, in memory that does not grow with them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from .row import Row


class Summary:
    """Counts rows as they come.

    Attributes:
        done: Rows counted.
        failures: Rows by error code.
        examples: The first failure of each code: path and message.
        classes: Predictions by (label, class name), so that two classes of one name stay apart.
        skipped: Images left out because an earlier run, which this one resumes, has a row of them; ``None``
            if there was none.
        skipped_failures: Those of them whose row is an error.
        left_out: Files left out because they do not end like an image, by extension.
    """

    def __init__(self) -> None:
        self.done = 0
        self.failures: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.classes: Counter[tuple[int, str]] = Counter()
        self.skipped: int | None = None
        self.skipped_failures = 0
        self.left_out: Counter[str] = Counter()
        self._started = time.perf_counter()

    def add(self, rows: Iterable[Row]) -> None:
        """Count some rows."""
        for row in rows:
            self.done += 1
            if row.error is None:
                self.classes[row.ranking[0].label, row.ranking[0].class_name] += 1
            else:
                self.failures[row.error.code.value] += 1
                self.examples.setdefault(row.error.code.value, f"{row.path}: {row.error.message}")

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.perf_counter() - self._started

    @property
    def rate(self) -> float:
        """Images a second so far."""
        return self.done / max(self.seconds, 1e-9)
