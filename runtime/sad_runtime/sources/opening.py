"""SOURCE arguments: what each one is, whether there is anything to read, and the passes over them."""

from __future__ import annotations

import dataclasses
import enum
import glob
import os
import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from ..errors import UserError
from ..images import EXTENSIONS
from . import lists
from .archives import Archive, TarMember
from .items import FailedItem, Item, absolute
from .names import sorted_names
from .shard import Shard
from .walk import Walk, plain

STDIN = "-"
"""As a SOURCE: paths on standard input."""

_LIST = "@"
_NO_IMAGE = "no image in it"


def open_sources(
    sources: Sequence[str | os.PathLike[str]],
    *,
    exclude: Iterable[str | os.PathLike[str]] = (),
    shard: Shard | None = None,
    stdin: IO[str] | None = None,
    zip_encoding: str | None = None,
) -> Sources:
    """Look at SOURCE arguments; all that are of no use are found before anything is read.

    A SOURCE is, in this order: ``-``, paths on standard input; a file, folder or archive of that name;
    ``@LIST``, a file of paths; a pattern (``*``, ``?``, ``[…]``, ``**``) as a shell reads it.

    - A folder is searched below, by file name extension. Hidden entries are left out. Links are followed;
      each real folder is read once. A folder below it that cannot be read is an item that fails.
    - A file named by itself is taken whatever its extension.
    - Archives (zip, tar, tar.gz, tar.bz2, tar.xz) are read in place, if named; not those found in a folder.
    - Paths of a list are relative to the working directory, one a line, or separated by null characters if
      it holds any. They may be folders and archives. One that does not exist is an item that fails.

    Args:
        sources: At least one.
        exclude: Files and folders not to read, for example where results are written.
        shard: The part of the items to take; all by default.
        stdin: Read for ``-`` instead of standard input.
        zip_encoding: Of names in zip archives that are not marked as UTF-8: ``cp932``, for example.

    Returns:
        The images, to be used as a context manager.

    Raises:
        UserError: Some sources do not exist, cannot be read, or hold no image; all of them are named.
            Or there is no such encoding.
    """
    if zip_encoding is not None:
        _check_encoding(zip_encoding)
    excluded = frozenset(os.path.realpath(path) for path in exclude)
    found: list[_Source] = []
    problems: list[str] = []
    for text in [os.fspath(source) for source in sources]:
        source = _Source.of(text)
        problem = _problem(source, excluded, zip_encoding)
        if text == STDIN and any(other.kind is _Kind.STDIN for other in found):
            problem = "standard input can be read only once"
        if problem is None:
            found.append(source)
        else:
            problems.append(f"{text} ({problem})")
    if problems:
        known = " ".join(sorted(EXTENSIONS))
        raise UserError(
            f"nothing to read from {', '.join(problems)}",
            hint=f"inside folders and archives, images are found by their extensions: {known}"
            if any(_NO_IMAGE in problem for problem in problems)
            else None,
        )
    return Sources(found, excluded, shard, stdin or sys.stdin, zip_encoding)


class Sources:
    """The images of some sources, from :func:`open_sources`; a context manager.

    Iterating gives every image once, in an order that depends on names alone: sources as given, folders in
    the order of the bytes of their paths, tar archives as they lie, zip archives by name, lists as written.
    It may be done again, but for standard input. Folders are remembered, files are not, except for a digest
    of each that is named by itself and the names in the folder that is being read.

    Items read themselves, in any thread, while the context is open.

    Attributes:
        base: Deepest folder (absolute) that holds all sources; relative to it every item's name is unique.
            The root, if there is standard input: nothing is known of its paths beforehand.
        other_endings: Of the last iteration, as far as it went: files in folders and archives that were left
            out because they do not end like an image, by extension; see :class:`~.left_out.LeftOut`.
    """

    def __init__(
        self,
        sources: Sequence[_Source],
        excluded: frozenset[str],
        shard: Shard | None,
        stdin: IO[str],
        zip_encoding: str | None = None,
    ) -> None:
        self._zip_encoding = zip_encoding
        self.base = _base(sources)
        self._sources = sources
        self._excluded = excluded
        self._shard = shard or Shard(1, 1)
        self._stdin: IO[str] | None = stdin
        self.other_endings: Counter[str] = Counter()
        self._opened: weakref.WeakSet[Archive] = weakref.WeakSet()

    def __iter__(self) -> Iterator[Item]:
        """The images of this shard, found as they are asked for.

        Raises:
            UserError: A list cannot be read any more.
            RuntimeError: Standard input has been read before.
        """
        walk = Walk(self._excluded, self._opened, sorted_names, zip_encoding=self._zip_encoding)
        self.other_endings = walk.left_out.counts
        for k, entry in enumerate(self._entries(walk)):
            if self._shard.owns(k):
                yield entry.held() if isinstance(entry, TarMember) else entry

    def count(self) -> int | None:
        """How many items there are, by looking at all names and storing none; ``None`` for standard input."""
        if any(source.kind is _Kind.STDIN for source in self._sources):
            return None
        walk = Walk(self._excluded, self._opened, iter, zip_encoding=self._zip_encoding)
        return sum(1 for k, _ in enumerate(self._entries(walk)) if self._shard.owns(k))

    def _entries(self, walk: Walk) -> Iterator[Item | TarMember]:
        for source in self._sources:
            if source.kind is _Kind.STDIN:
                if self._stdin is None:
                    raise RuntimeError("standard input has been read before")
                stream, self._stdin = self._stdin, None
                for name in lists.split(lists.chunks(stream), None, "standard input"):
                    yield from walk.listed(name)
            else:
                yield from source.entries(walk)

    def close(self) -> None:
        """Close the archives."""
        for archive in list(self._opened):
            archive.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Kind(enum.Enum):
    PATH = enum.auto()
    PATTERN = enum.auto()
    LIST = enum.auto()
    STDIN = enum.auto()


@dataclasses.dataclass(frozen=True)
class _Source:
    """One SOURCE argument.

    Attributes:
        kind: What it is.
        name: The path, the pattern, or the list's path.
    """

    kind: _Kind
    name: str

    @classmethod
    def of(cls, text: str) -> Self:
        if text == STDIN:
            return cls(_Kind.STDIN, text)
        if os.path.lexists(text):
            return cls(_Kind.PATH, plain(text))
        if text.startswith(_LIST):
            return cls(_Kind.LIST, text.removeprefix(_LIST))
        return cls(_Kind.PATTERN, text)

    def entries(self, walk: Walk) -> Iterator[Item | TarMember]:
        """What it holds; not for standard input."""
        if self.kind is _Kind.PATH:
            yield from walk.path(self.name)
        elif self.kind is _Kind.PATTERN:
            yield from walk.pattern(self.name)
        else:
            for name in self.paths():
                yield from walk.listed(name)

    def paths(self) -> Iterator[str]:
        """The paths of a list.

        Raises:
            UserError: It cannot be read.
        """
        try:
            separator = lists.separator_of(self.name)
            with open(self.name, "rb") as file:  # noqa: PTH123
                yield from lists.split(lists.chunks(file), separator, f"the list {self.name}")
        except OSError as error:
            raise UserError(f"the list {self.name} cannot be read: {error.strerror}") from error


def _problem(source: _Source, excluded: frozenset[str], zip_encoding: str | None) -> str | None:
    """Why there is nothing to read, if so; looks no further than the first image."""
    if source.kind is _Kind.STDIN:
        return None
    if source.kind is _Kind.LIST:
        return _problem_of_list(source)
    if source.kind is _Kind.PATTERN and next(glob.iglob(source.name, recursive=True), None) is None:  # noqa: PTH207
        return "no such file or folder"
    # In any order: a large folder takes time to sort.
    first = next(source.entries(Walk(excluded, weakref.WeakSet(), iter, zip_encoding=zip_encoding)), None)
    if isinstance(first, FailedItem) and first.name == source.name:
        return first.message
    if first is not None:
        return None
    inside = Walk(frozenset(), weakref.WeakSet(), iter, zip_encoding=zip_encoding)
    return _NO_IMAGE if next(source.entries(inside), None) is None else "results are written there"


def _check_encoding(name: str) -> None:
    """Refuse what is no encoding of text.

    Raises:
        UserError: It is none.
    """
    try:
        "a.png".encode(name)
    except (LookupError, ValueError):
        raise UserError(
            f"--zip-encoding {name}: there is no such encoding", hint="for example cp932, cp866 or gbk"
        ) from None


def _problem_of_list(source: _Source) -> str | None:
    if not os.path.exists(source.name):  # noqa: PTH110
        return "no such file"
    if not os.path.isfile(source.name):  # noqa: PTH113 - a pipe could be read only once
        return "not a regular file; - reads a list from standard input"
    return "no path in it" if next(source.paths(), None) is None else None


def _base(sources: Sequence[_Source]) -> Path:
    """See :class:`Sources`. For patterns and lists it is worked out from the text alone."""
    base: str | None = None
    for folder in (folder for source in sources for folder in _folders(source)):
        if base is None:
            base = folder
        elif not folder.startswith(os.path.join(base, "")):  # noqa: PTH118
            base = os.path.commonpath([base, folder])
    return Path(base or os.sep)


def _folders(source: _Source) -> Iterator[str]:
    """Folders (absolute) that together hold all that the source gives."""
    if source.kind is _Kind.STDIN:
        yield os.sep
    elif source.kind is _Kind.PATH:
        path = absolute(source.name)
        yield str(path if path.is_dir() else path.parent)
    elif source.kind is _Kind.LIST:
        for name in source.paths():
            yield os.path.dirname(os.path.abspath(name))  # noqa: PTH100, PTH120
    else:
        path = absolute(source.name)
        while glob.has_magic(str(path)):
            path = path.parent
        yield str(path)
