"""One pass over all sources: every image once, in order, remembering folders but not files.

A folder that has been read covers what lies in it. Files that were named one by one are remembered as
digests, so that a folder that comes later leaves them out.
"""

from __future__ import annotations

import functools
import glob
import heapq
import os
import weakref
from collections.abc import Callable, Iterable, Iterator

from ..errors import ImageError
from .archives import Archive, TarMember, is_archive_name
from .items import FailedItem, FileItem, Item, unreadable
from .left_out import LeftOut
from .names import has_image_ending, name_digest, sorted_names

_PARENTS_KEPT = 4096


class Walk:
    """A pass; each method is a generator of what it finds that no method of this pass has found before.

    Args:
        excluded: Real paths of files and folders to leave out.
        opened: Where archives are entered while they are open.
        sort: How the entries of a folder are put in order; ``iter`` for counting, where any order will do.
        zip_encoding: Of names in zip archives that are not marked as UTF-8.

    Attributes:
        left_out: Files in folders and archives that were passed over because they do not end like an image;
            not what is hidden, what is read because it was named by itself, nor results.
    """

    def __init__(
        self,
        excluded: frozenset[str],
        opened: weakref.WeakSet[Archive],
        sort: Callable[[Iterable[str]], Iterator[str]] = sorted_names,
        *,
        zip_encoding: str | None = None,
    ) -> None:
        self._zip_encoding = zip_encoding
        self._excluded = excluded
        self._excluded_names = {os.path.basename(path) for path in excluded}  # noqa: PTH119
        # What is kept beside results while they are written is called NAME.partial and the like.
        self._beside_excluded = tuple(f"{path}." for path in excluded)
        self._opened = opened
        self._sort = sort
        self.left_out = LeftOut()
        self._folders: set[str] = set()
        self._files: set[bytes] = set()
        self._real_parent = functools.lru_cache(_PARENTS_KEPT)(os.path.realpath)

    def pattern(self, pattern: str) -> Iterator[Item | TarMember]:
        """What a shell would make of a pattern, each as if it had been written out."""
        for name in self._sort(glob.iglob(pattern, recursive=True)):  # noqa: PTH207 - Path.glob rewrites it
            yield from self.path(plain(name))

    def listed(self, name: str) -> Iterator[Item | TarMember]:
        """One path of a list. The ending tells an image: asking the system about each costs a round trip."""
        name = plain(name)
        return self._file(name) if has_image_ending(name) else self.path(name)

    def path(self, name: str) -> Iterator[Item | TarMember]:
        """A folder, an archive or a file, whatever its ending; a file that is not there fails when read."""
        if "\0" not in name and os.path.isdir(name):  # noqa: PTH112
            return self.folder(name)
        if is_archive_name(name):
            return self._archive(name)
        return self._file(name)

    def folder(self, name: str) -> Iterator[Item]:
        """Images below a folder, in the order of the bytes of their paths.

        Links to folders come after everything else, so that they add no second name for what is there
        anyway, and a loop ends. A folder that cannot be read is an item that fails.
        """
        linked: list[tuple[str, str]] = []
        real = os.path.realpath(name)
        if self._is_excluded(real):
            return
        yield from self._tree(name, real, linked)
        while linked:
            name, real = heapq.heappop(linked)
            if not self._is_excluded(real):
                yield from self._tree(name, real, linked)

    def _tree(self, name: str, real: str, linked: list[tuple[str, str]]) -> Iterator[Item]:
        pending = [self._entries(name, real, linked)]
        while pending:
            entry = next(pending[-1], None)
            if entry is None:
                pending.pop()
            elif isinstance(entry, tuple):
                pending.append(self._entries(*entry, linked))
            else:
                yield entry

    def _entries(
        self, name: str, real: str, linked: list[tuple[str, str]]
    ) -> Iterator[Item | tuple[str, str]]:
        """Images of one folder, and its folders as (name, real path)."""
        if real in self._folders or real in self._excluded:
            return
        self._folders.add(real)
        here, real_here = os.path.join(plain(name), ""), os.path.join(real, "")  # noqa: PTH118
        if name == os.curdir:
            here = ""
        try:
            for entry in self._sort(self._scan(name, here, real, linked)):
                if entry.endswith("/"):
                    yield here + entry[:-1], real_here + entry[:-1]
                elif not self._was_named(f"{real}/{entry}") and not self._is_excluded_file(real_here, entry):
                    yield FileItem(here + entry)
        except OSError as error:
            self._folders.discard(real)  # it covers nothing
            if self._remember(real_here):
                code = unreadable(error).code
                yield FailedItem(name, code, f"the folder cannot be read: {error.strerror}")

    def _scan(self, name: str, here: str, real: str, linked: list[tuple[str, str]]) -> Iterator[str]:
        """Names of images and, with a slash at the end, of folders; links to folders go to ``linked``."""
        with os.scandir(name) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield entry.name + "/"
                elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112 - never raises
                    path = here + entry.name
                    heapq.heappush(linked, (path, os.path.realpath(path)))
                elif has_image_ending(entry.name):
                    yield entry.name
                else:
                    self._leave_out(real, entry.name)

    def _leave_out(self, real: str, own: str) -> None:
        path = f"{real}/{own}"
        is_result = path in self._excluded or path.startswith(self._beside_excluded)
        if not is_result and not self._was_named(path):
            self.left_out.add(own)

    def _file(self, name: str) -> Iterator[Item]:
        if self._is_new(name):
            yield FileItem(name)

    def _archive(self, name: str) -> Iterator[Item | TarMember]:
        if not self._is_new(name):
            return
        try:
            archive = Archive(name, zip_encoding=self._zip_encoding)
        except ImageError as error:
            yield FailedItem(name, error.code, error.message)
            return
        self._opened.add(archive)
        yield from archive.members(self.left_out)

    def _is_new(self, name: str) -> bool:
        """Whether a file that is named by itself has not been found before; it is remembered."""
        if "\0" in name:
            return True
        parent, own = os.path.split(os.path.abspath(name))  # noqa: PTH100
        real = self._real_parent(parent)
        covered = real in self._folders and not own.startswith(".") and os.path.lexists(name)
        if covered and has_image_ending(own):
            return False
        if self._is_excluded(real) or self._is_excluded_file(os.path.join(real, ""), own):  # noqa: PTH118
            return False
        new = self._remember(f"{real}/{own}")
        if new and covered:
            self.left_out.take_back(own)
        return new

    def _was_named(self, path: str) -> bool:
        # Most runs name no file by itself, and a digest takes time.
        return bool(self._files) and name_digest(path) in self._files

    def _remember(self, path: str) -> bool:
        """Keep a path's digest; returns whether it is new."""
        before = len(self._files)
        self._files.add(name_digest(path))
        return len(self._files) > before

    def _is_excluded_file(self, real_here: str, own: str) -> bool:
        # The name first: a link may lead to an excluded file, but asking about each is too slow.
        return own in self._excluded_names and os.path.realpath(real_here + own) in self._excluded

    def _is_excluded(self, real: str) -> bool:
        return any(real == path or real.startswith(os.path.join(path, "")) for path in self._excluded)  # noqa: PTH118


def plain(name: str) -> str:
    """A path without ``./`` before it and doubled slashes; anything else stays as the user wrote it."""
    while name.startswith("./") and len(name) > 2:
        name = name[2:].lstrip("/") or "."
    while "//" in name:
        name = name.replace("//", "/")
    return name
