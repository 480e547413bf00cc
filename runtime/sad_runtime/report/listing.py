"""The rows that the page lists, as columns: every name once, numbers instead of words."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from typing import IO

from ..labelled import Labels
from ..results import Row
from .tally import Kind, Tally, kind_of
from .text import in_script, visible

LISTED_ROWS = 100_000
"""Rows that a page lists at most."""

RANKS = 5
"""Classes of a ranking that a page shows at most."""

PARTS = 10_000
"""Probabilities are written in this many parts."""

_NOTHING = -1


class Listing:
    """Columns of the listed rows, in the journal's order.

    Where there are more rows than the page lists, those with pictures come first, then failures, then changed
    labels, then the others from the beginning.

    Args:
        rows: All of the run.
        counts: Their counts.
        pictured: Names of the images with pictures.
        limit: Rows listed at most.
        labels: What the images show, where that is known.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        counts: Tally,
        pictured: Container[str],
        *,
        limit: int,
        labels: Labels | None = None,
    ) -> None:
        self._labels = labels
        self._truth = array("i")
        self.pictures: list[str] = []
        self._folders: dict[str, int] = {}
        self._codes: dict[str, int] = {}
        self._names: list[str] = []
        self._folder = array("i")
        self._label = array("i")
        self._probability = array("i")
        self._plain = array("i")
        self._rest = array("i")
        self._ranks = 1
        self._failures: list[tuple[int, int, str]] = []
        self._frames: list[tuple[int, int]] = []
        self._pictured = array("i")
        self._images = counts.images
        room: dict[Kind, int] = {}
        for kind in Kind:
            room[kind] = min(counts.kinds[kind], limit - sum(room.values()))
        for row in rows:
            kind = kind_of(row, pictured)
            if room[kind]:
                room[kind] -= 1
                self._append(row, with_picture=kind is Kind.PICTURED)

    def __len__(self) -> int:
        return len(self._names)

    def _append(self, row: Row, *, with_picture: bool) -> None:
        at = len(self._names)
        folder, slash, name = row.path.rpartition("/")
        self._names.append(visible(name))
        self._folder.append(self._folders.setdefault(visible(folder + slash), len(self._folders)))
        ranking = [number for label, _, p in row.ranking[:RANKS] for number in (label, round(p * PARTS))]
        self._ranks = max(self._ranks, len(ranking) // 2)
        padded = ranking + [_NOTHING] * (2 * RANKS - len(ranking))
        self._label.append(padded[0])
        self._probability.append(padded[1])
        self._rest.extend(padded[2:])
        self._plain.append(_NOTHING if row.plain is None else row.plain.label)
        if self._labels is not None:
            truth = self._labels.of(row.path)
            self._truth.append(_NOTHING if truth is None else truth)
        if row.error is not None:
            code, message = row.error
            self._failures.append((at, self._codes.setdefault(code, len(self._codes)), visible(message)))
        if row.frames > 1:
            self._frames.append((at, row.frames))
        if with_picture:
            self._pictured.append(at)
            self.pictures.append(row.path)

    def write(self, file: IO[str], classes: Iterable[str]) -> None:
        """Write the columns as one JSON object that is safe inside a ``script`` element.

        Args:
            file: Where to.
            classes: K names.
        """
        columns: list[tuple[str, Iterable[str]]] = [
            ("classes", map(in_script, distinct(classes))),
            ("folders", map(in_script, self._folders)),
            ("codes", map(in_script, map(visible, self._codes))),
            ("name", map(in_script, self._names)),
            ("folder", map(str, self._folder)),
            ("label", map(str, self._label)),
            ("probability", map(str, self._probability)),
            ("plain", map(str, self._plain)),
            ("truth", map(str, self._truth)),
            ("rest", map(str, self._shortened_rest())),
            ("failures", map(in_script, self._failures)),
            ("frames", map(in_script, self._frames)),
            ("pictured", map(str, self._pictured)),
        ]
        file.write(f'{{"images":{self._images},"ranks":{self._ranks},"parts":{PARTS}')
        for name, values in columns:
            file.write(f",\n{json.dumps(name)}:[{','.join(values)}]")
        file.write("}")

    def _shortened_rest(self) -> Iterator[int]:
        """The ranks after the first, only as many as some row has."""
        stored, shown = 2 * (RANKS - 1), 2 * (self._ranks - 1)
        for start in range(0, len(self._rest), stored):
            yield from self._rest[start : start + shown]


def distinct(classes: Iterable[str]) -> list[str]:
    """Class names as they are shown: the label is added where two are the same."""
    shown = [visible(name) for name in classes]
    counts = Counter(shown)
    return [f"{name} (label {label})" if counts[name] > 1 else name for label, name in enumerate(shown)]
