"""Which images a journal has rows of already, in 17 bytes per row.

Of a line as ``Row.to_json`` writes it only the head is read. A line written differently, for example by
another tool, is parsed as a whole, and so is the journal's end, where a power failure may have left damage.
"""

from __future__ import annotations

import bisect
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import UserError
from ..sources import Item
from .row import match_head, parse_head

_PARSED_TAIL = 1 << 23
"""Bytes at the end of which every line is parsed; a batch, written at once, is smaller unless it is huge."""


class FinishedRows:
    """The rows of a journal, to skip their images.

    Paths and stamps are compared by 64 bits each of Python's keyed hash. Among a million paths, two share
    theirs with a probability of 3 in 10⁸.

    Args:
        journal: The file of JSON Lines; an incomplete last line is not a row.

    Attributes:
        count: Rows.
        end: Where the last whole row ends, in bytes.
        skipped: Images that were left out so far because they have a row.
        skipped_failures: Those of them whose row is an error.
        replaced: Images let through so far although they have a row, which is out of date.

    Raises:
        UserError: A line that is not a row lies between rows.
        OSError: The file cannot be read.
    """

    def __init__(self, journal: Path) -> None:
        paths, stamps, failed = array("q"), array("q"), bytearray()
        self.end = 0
        with journal.open("rb") as file:
            for path, stamp, is_failure, self.end in _heads(file):
                paths.append(path)
                stamps.append(stamp)
                failed.append(is_failure)
        self.count = len(paths)
        unsorted = np.array(paths, np.int64)
        # Stable: among rows of one path the last one, which counts, stays the last.
        order = np.argsort(unsorted, kind="stable")
        sorted_paths = unsorted[order]
        self._has_duplicates = bool((sorted_paths[1:] == sorted_paths[:-1]).any())
        self._paths = sorted_paths.data
        self._stamps = np.array(stamps, np.int64)[order].data
        self._failed = np.array(failed, np.uint8)[order].data
        self.skipped = 0
        self.skipped_failures = 0
        self.replaced = 0

    @property
    def superseded(self) -> bool:
        """Whether the journal has, or will have, more than one row of some image."""
        return self._has_duplicates or self.replaced > 0

    def remaining(self, images: Iterable[Item], *, retry_errors: bool = False) -> Iterator[Item]:
        """The images that have no row yet, or whose file was changed since.

        What has no stamp, for example a file that was not found, counts as changed.

        Args:
            images: All images.
            retry_errors: Whether an image whose row is an error is let through too.

        Yields:
            Those to classify, in the order given.
        """
        paths, stamps = self._paths, self._stamps
        for image in images:
            key = hash(image.name.encode("utf-8", "surrogatepass"))
            at = bisect.bisect_right(paths, key) - 1
            if at < 0 or paths[at] != key:
                yield image
                continue
            stamp = image.stamp()
            is_current = stamp is not None and stamps[at] == hash(stamp)
            if not is_current or (retry_errors and self._failed[at]):
                self.replaced += 1
                yield image
            else:
                self.skipped += 1
                self.skipped_failures += self._failed[at]


def compact(journal: Path, target: Path) -> None:
    """Copy a journal without the rows that a later one replaces: of every path the last one stays.

    Raises:
        OSError: One cannot be read, or the other not be written.
    """
    with journal.open("rb") as file:
        paths = np.fromiter((path for path, _, _, _ in _heads(file)), np.int64)
    order = np.argsort(paths, kind="stable")
    is_last = np.ones(len(paths), bool)
    is_last[:-1] = paths[order][1:] != paths[order][:-1]
    keep = np.empty(len(paths), bool)
    keep[order] = is_last
    with journal.open("rb") as file, target.open("wb") as copy:
        copy.writelines(line for line, kept in zip(file, keep.tolist(), strict=False) if kept)


def _heads(file: IO[bytes]) -> Iterator[tuple[int, int, bool, int]]:
    """Of every row up to the incomplete end: 64 bits each of path and stamp, whether it failed, its end."""
    parse_from = os.fstat(file.fileno()).st_size - _PARSED_TAIL
    end = damaged = 0
    for number, line in enumerate(file, 1):
        head = match_head(line) if end < parse_from and not damaged else None
        head = head or parse_head(line)
        end += len(line)
        if head is None:
            damaged = damaged or number
        elif damaged:
            raise UserError(
                f"line {damaged} of {os.fsdecode(file.name)} is not a row",
                hint="mend or remove the line, or start afresh with --overwrite",
            )
        else:
            path, stamp, failed = head
            yield hash(path), hash(stamp), failed, end
