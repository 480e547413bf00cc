"""Which file names are images', the order of names, and what is kept of a name to know it again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator

from ..images import EXTENSIONS

_ENDINGS = tuple(sorted(EXTENSIONS))


def has_image_ending(name: str) -> bool:
    """Whether a name ends as an image's does, in capitals or not."""
    return name.lower().endswith(_ENDINGS)


def sorted_names(names: Iterable[str]) -> Iterator[str]:
    """Names in the order of their bytes, as ``LC_ALL=C sort`` has them.

    Args:
        names: File names or paths; all are read before the first is returned.
    """
    # Not sorted(key=os.fsencode), which holds every name twice.
    return map(os.fsdecode, sorted(map(os.fsencode, names)))


def name_digest(name: str) -> bytes:
    """128 bits that stand for a name in a set, however long a stranger's archive makes it."""
    return hashlib.blake2b(os.fsencode(name), digest_size=16).digest()
