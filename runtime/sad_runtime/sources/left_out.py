"""Files that are passed over because their names do not end like an image's, counted by extension."""

from __future__ import annotations

import os
from collections import Counter

OTHERS = "…"
"""What all extensions beyond the first hundred are counted as, and those that are no words."""

_EXTENSIONS_KEPT = 100
_LONGEST = 16
_NAMED = 5


class LeftOut:
    """Counts by extension, in folders and archives alike.

    They take little memory, however many names there are and whatever a stranger made of them.

    Attributes:
        counts: Files by extension: in lower case, with its dot, and empty where there is none. From the
            hundredth on, all are one, :data:`OTHERS`; so are those that are long or cannot be printed.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, name: str) -> None:
        """A file of this name, without its folders, was left out."""
        self.counts[self._extension(name)] += 1

    def take_back(self, name: str) -> None:
        """A file that was left out is read after all."""
        extension = self._extension(name)
        self.counts[extension] -= 1
        if self.counts[extension] <= 0:
            del self.counts[extension]

    def _extension(self, name: str) -> str:
        extension = os.path.splitext(name)[1].lower()  # noqa: PTH122 - Path takes longer, a million times
        if len(extension) > _LONGEST or not extension.isprintable():
            return OTHERS
        known = extension in self.counts or len(self.counts) < _EXTENSIONS_KEPT
        return extension if known else OTHERS


def describe_left_out(counts: Counter[str], where: str = "") -> str:
    """What was left out, in words that add up: the most frequent extensions, and how many files more.

    Args:
        counts: Of :class:`LeftOut`, not empty.
        where: Where the files lie, for example ``photos/``.
    """
    total = counts.total()
    # Equals by name: the order in which they were found is the file system's.
    known = sorted((-n, not extension, extension) for extension, n in counts.items() if extension != OTHERS)
    named = [f"{-n} {extension or 'without extension'}" for n, _, extension in known[:_NAMED]]
    if rest := total + sum(n for n, _, _ in known[:_NAMED]):
        named.append(f"{rest} others")
    files = f"{total} file{'' if total == 1 else 's'}{f' in {where}' if where else ''}"
    return f"{files} left out for not having an image's extension: {', '.join(named)}"
