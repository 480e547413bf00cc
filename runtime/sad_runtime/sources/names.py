"""Which file names are images', and sorting many names in little memory.

A folder may hold a million files, and an order that does not depend on the file system needs them sorted.
Packed into sorted runs, they cost little more than their length.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator

from ..images import EXTENSIONS

_ENDINGS = tuple(sorted(EXTENSIONS))
_RUN = 1 << 12
"""Names that are sorted at a time, as separate objects."""


def has_image_ending(name: str) -> bool:
    """Whether a name ends as an image's does, in capitals or not."""
    return name.lower().endswith(_ENDINGS)


def sorted_names(names: Iterable[str]) -> Iterator[str]:
    """Names in the order of their bytes, as ``LC_ALL=C sort`` has them.

    Args:
        names: File names or paths; all are read before the first is returned.
    """
    runs: list[bytes] = []
    run: list[bytes] = []
    for name in names:
        run.append(os.fsencode(name))
        if len(run) == _RUN:
            runs.append(_packed(run))
            run = []
    if not runs:
        run.sort()
        return map(os.fsdecode, run)
    runs.append(_packed(run))
    del run
    return map(os.fsdecode, heapq.merge(*map(_unpacked, runs)))


def _packed(run: list[bytes]) -> bytes:
    run.sort()
    return b"\0".join([*run, b""])  # no file name holds a null


def _unpacked(run: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(run):
        end = run.index(b"\0", start)
        yield run[start:end]
        start = end + 1
