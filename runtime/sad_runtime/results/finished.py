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
from typing import IO, NamedTuple, Protocol, TypeVar

import numpy as np

from ..errors import UserError

_LINE = re.compile(
    rb'\{"path": "([^"\\]*(?:\\.[^"\\]*)*)"(?:, "size": (\d+), "mtime_ns": (-?\d+))?, "(label|error)": .+\}\n'
)
_PARSED_TAIL = 1 << 23
"""Bytes at the end of which every line is parsed; a batch, written at once, is smaller unless it is huge."""


class Stamp(Protocol):
    """What tells that a file was changed."""

    @property
    def size(self) -> int: ...

    @property
    def mtime_ns(self) -> int: ...


class Stamped(Protocol):
    """An image that may have a row already."""

    @property
    def name(self) -> str: ...

    def stamp(self) -> Stamp | None: ...


_Image = TypeVar("_Image", bound=Stamped)


class _Head(NamedTuple):
    """What a line says before its ranking: 64 bits each of path and stamp, and whether it is an error."""

    path: int
    stamp: int
    failed: bool


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
            for head, line in _heads(file):
                paths.append(head.path)
                stamps.append(head.stamp)
                failed.append(head.failed)
                self.end += len(line)
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

    def without(self, images: Iterable[_Image], *, retry_errors: bool = False) -> Iterator[_Image]:
        """The images that have no row yet, or whose file was changed since.

        What has no stamp, for example a file that was not found, counts as changed.

        Args:
            images: All images.
            retry_errors: Whether an image whose row is an error is let through too.

        Yields:
            Those to classify, in the order given.
        """
        for image in images:
            key = hash(_as_bytes(image.name))
            at = bisect.bisect_right(self._paths, key) - 1
            if at < 0 or self._paths[at] != key:
                yield image
            elif not self._is_current(at, image.stamp()) or (retry_errors and self._failed[at]):
                self.replaced += 1
                yield image
            else:
                self.skipped += 1
                self.skipped_failures += self._failed[at]

    def _is_current(self, at: int, stamp: Stamp | None) -> bool:
        return stamp is not None and self._stamps[at] == hash((stamp.size, stamp.mtime_ns))


def compact(journal: Path, target: Path) -> None:
    """Copy a journal without the rows that a later one replaces: of every path the last one stays.

    Raises:
        OSError: One cannot be read, or the other not be written.
    """
    with journal.open("rb") as file:
        paths = np.fromiter((head.path for head, _ in _heads(file)), np.int64)
    order = np.argsort(paths, kind="stable")
    is_last = np.ones(len(paths), bool)
    is_last[:-1] = paths[order][1:] != paths[order][:-1]
    keep = np.empty(len(paths), bool)
    keep[order] = is_last
    with journal.open("rb") as file, target.open("wb") as copy:
        copy.writelines(line for line, kept in zip(file, keep.tolist(), strict=False) if kept)


def _heads(file: IO[bytes]) -> Iterator[tuple[_Head, bytes]]:
    """The rows of a journal up to its incomplete end, with their lines."""
    parse_from = os.fstat(file.fileno()).st_size - _PARSED_TAIL
    position, damaged = 0, 0
    for number, line in enumerate(file, 1):
        head = _head(line, whole=position >= parse_from)
        position += len(line)
        if head is None:
            damaged = damaged or number
        elif damaged:
            raise UserError(
                f"line {damaged} of {os.fsdecode(file.name)} is not a row",
                hint="mend or remove the line, or start afresh with --overwrite",
            )
        else:
            yield head, line


def _head(line: bytes, *, whole: bool) -> _Head | None:
    """``None`` for a line that is not a row."""
    match = None if whole else _LINE.fullmatch(line)
    if match is None:
        return _parsed_head(line)
    path, size, mtime_ns, kind = match.groups()
    if b"\\" in path:
        path = _as_bytes(json.loads(b'"%b"' % path))
    stamp = _NO_STAMP if size is None else hash((int(size), int(mtime_ns)))
    return _Head(hash(path), stamp, kind == b"error")


def _parsed_head(line: bytes) -> _Head | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
        if not isinstance(row["path"], str) or ("label" in row) == ("error" in row):
            return None
        stamp = hash((int(row["size"]), int(row["mtime_ns"]))) if "size" in row else _NO_STAMP
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return _Head(hash(_as_bytes(row["path"])), stamp, "error" in row)


_NO_STAMP = hash(())


def _as_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")
