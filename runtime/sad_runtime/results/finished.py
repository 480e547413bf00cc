r"""Which images a journal has rows of already, in 17 bytes a row.

A line as ``Row.to_json`` writes it is read up to the stamp, its string with every escape, and not beyond: a
ranking costs ten times as much to parse as the rest. A line written differently, for example by another tool,
is parsed as a whole, and so is the journal's end, where a power failure may have left damage.
"""

from __future__ import annotations

import bisect
import json
import os
import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import UserError
from ..sources import Item

_LINE = re.compile(
    rb'\{"path": "([^"\\]*(?:\\.[^"\\]*)*)"'
    rb'(?:, "size": (\d+), "mtime_ns": (-?\d+))?, "(?:label|(error))": .+\}\n'
)
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

    def without(self, images: Iterable[Item], *, retry_errors: bool = False) -> Iterator[Item]:
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
    match_line = _LINE.fullmatch
    end = damaged = 0
    for number, line in enumerate(file, 1):
        # A million times, so that nothing is called that need not be.
        match = match_line(line) if end < parse_from else None
        end += len(line)
        if match is not None and not damaged:
            path, size, mtime_ns, failed = match.groups()
            if b"\\" in path:
                path = json.loads(b'"%b"' % path).encode("utf-8", "surrogatepass")
            stamp = _NO_STAMP if size is None else hash((int(size), int(mtime_ns)))
            yield hash(path), stamp, failed is not None, end
        elif (head := _parsed_head(line)) is None:
            damaged = damaged or number
        elif damaged:
            raise UserError(
                f"line {damaged} of {os.fsdecode(file.name)} is not a row",
                hint="mend or remove the line, or start afresh with --overwrite",
            )
        else:
            yield *head, end


def _parsed_head(line: bytes) -> tuple[int, int, bool] | None:
    """The same of one line, parsed as a whole; ``None`` if it is not a row."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
        if not isinstance(row["path"], str) or ("label" in row) == ("error" in row):
            return None
        stamp = hash((int(row["size"]), int(row["mtime_ns"]))) if "size" in row else _NO_STAMP
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return hash(row["path"].encode("utf-8", "surrogatepass")), stamp, "error" in row


_NO_STAMP = hash(())
