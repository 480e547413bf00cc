"""Images that lie somewhere, in a fixed order, to be read as often as they are asked for.

What an image is called and where it lies is kept for files only, as bytes; of archives and tables nothing is
kept but how many images each holds.
"""

from __future__ import annotations

import dataclasses
import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from sad_runtime.devices import available_cores
from sad_runtime.errors import ImageError, UserError
from sad_runtime.given import load_item
from sad_runtime.manifest import Preprocessing
from sad_runtime.sources import FailedItem, FileItem, Item
from sad_runtime.sources.archives import Archive, TarMember
from sad_runtime.sources.left_out import LeftOut
from sad_runtime.sources.names import has_image_ending

Places: TypeAlias = npt.NDArray[np.intp] | npt.NDArray[np.int64]
Pixels: TypeAlias = npt.NDArray[np.uint8]
Told: TypeAlias = Callable[[int], None]

_AHEAD = 4
"""Images that are read before they are decoded, for each thread: what bounds the bytes that are held."""

_NAMED = 3


class Items(Protocol):
    """See the module."""

    def __len__(self) -> int: ...

    def at(self, places: Places) -> Iterator[tuple[int, Item]]:
        """Some of them, in the order that is cheapest, with their places.

        Args:
            places: (n,) indices, each once.

        Raises:
            UserError: The source cannot be read any more.
        """
        ...


class FileItems:
    """Image files; a name takes its bytes and eight more."""

    def __init__(self, names: Iterable[str | Path] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("Q", [0])
        for name in names:
            self.add(name)

    def add(self, name: str | Path) -> None:
        """One more, at the end."""
        self._bytes += os.fsencode(name)
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        """The names, in order."""
        return map(self.name, range(len(self)))

    def sorted(self) -> FileItems:
        """The same in the order of their paths, folder by folder."""
        return FileItems(sorted(self, key=_folder_by_folder))

    def name(self, place: int) -> str:
        """The file at a place."""
        return os.fsdecode(bytes(self._bytes[self._ends[place] : self._ends[place + 1]]))

    def at(self, places: Places) -> Iterator[tuple[int, Item]]:
        """See :class:`Items`; in the order asked for."""
        for place in map(int, places):
            yield place, FileItem(self.name(place))


class ArchiveItems:
    """Images in archives, one after another, each gone through from its beginning.

    Args:
        paths: The archives.
        counts: Images that each holds.
    """

    def __init__(self, paths: Sequence[str], counts: Sequence[int]) -> None:
        self._paths = tuple(paths)
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def at(self, places: Places) -> Iterator[tuple[int, Item]]:
        """See :class:`Items`; as they lie."""
        start = 0
        for path, end in zip(self._paths, map(int, self._ends), strict=True):
            wanted = {int(place) for place in places if start <= place < end}
            if wanted:
                yield from self._within(path, start, wanted)
            start = end

    def _within(self, path: str, start: int, wanted: set[int]) -> Iterator[tuple[int, Item]]:
        try:
            archive = Archive(path)
        except ImageError as error:
            yield from ((place, FailedItem(path, error.code, error.message)) for place in wanted)
            return
        last = max(wanted)
        images = (each for each in archive.members(LeftOut()) if has_image_ending(each.name))
        for place, member in enumerate(images, start=start):
            if place in wanted:
                yield place, member.held() if isinstance(member, TarMember) else member
            if place >= last:
                return


def _folder_by_folder(name: str | Path) -> list[str]:
    return str(name).split("/")


@dataclasses.dataclass(frozen=True)
class Taken:
    """Images that were read.

    Attributes:
        images: (n, C, H, W) uint8.
        kept: (n,) which of the candidates they are, ascending.
        names: (n,) what they are called.
        skipped: Those that could not be used, with the reason.
    """

    images: Pixels
    kept: npt.NDArray[np.intp]
    names: tuple[str, ...]
    skipped: tuple[str, ...]


def read_images(
    name: str,
    items: Items,
    candidates: Places,
    limit: int,
    preprocessing: Preprocessing,
    *,
    strict: bool = False,
    decoded: Told | None = None,
) -> Taken:
    """Read images until there are enough good ones, so that a broken one costs none.

    Held are the pixels of the images that are taken and the bytes of the few that are being decoded.

    Args:
        name: Of the source, for messages.
        items: Where they lie.
        candidates: Places in the order in which they are wanted, each once.
        limit: How many are enough.
        preprocessing: From an image file to the network's input.
        strict: Whether a broken image is fatal.
        decoded: Told after every image how many are done.

    Raises:
        UserError: With ``strict``, some cannot be used.
    """
    images = np.empty((max(min(limit, len(candidates)), 0), *preprocessing.shape), np.uint8)
    kept: list[int] = []
    names: list[str] = []
    skipped: list[str] = []
    position = done = 0
    with ThreadPoolExecutor(available_cores()) as pool:
        while position < len(candidates) and len(kept) < limit:
            chunk = candidates[position : position + limit - len(kept)]
            slot = {int(place): i for i, place in enumerate(chunk)}
            failed = dict.fromkeys(range(len(chunk)), f"{name}: an image is no longer there")
            free = images[len(kept) :]
            called = [""] * len(chunk)
            for place, item_name, found in _read(pool, items.at(chunk), preprocessing):
                if isinstance(found, str):
                    failed[slot[place]] = f"{item_name}: {found}"
                    continue
                del failed[slot[place]]
                free[slot[place]], called[slot[place]] = found, item_name
                done += 1
                if decoded is not None:
                    decoded(done)
            good = [i for i in range(len(chunk)) if i not in failed]
            if failed:
                free[: len(good)] = free[good]
                skipped += [failed[i] for i in sorted(failed)]
            kept += [position + i for i in good]
            names += [called[i] for i in good]
            position += len(chunk)
            if strict:
                refuse_skipped(name, skipped)
    return Taken(images[: len(kept)], np.array(kept, np.intp), tuple(names), tuple(skipped))


def refuse_skipped(name: str, skipped: Sequence[str]) -> None:
    """What ``--strict`` says of images that cannot be used.

    Raises:
        UserError: There are some.
    """
    if skipped:
        count = "1 image" if len(skipped) == 1 else f"{len(skipped)} images"
        more = f"; and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
        raise UserError(
            f"{count} of {name} cannot be used: {'; '.join(skipped[:_NAMED])}{more}",
            hint="without --strict they are skipped, and counted",
        )


def _read(
    pool: ThreadPoolExecutor, found: Iterator[tuple[int, Item]], preprocessing: Preprocessing
) -> Iterator[tuple[int, str, Pixels | str]]:
    """Place, name, and pixels or what is wrong, for each item; few are held at a time."""

    def pixels(item: Item) -> Pixels | str:
        try:
            # Inference divides 8-bit pixels by 255; this undoes exactly that.
            return np.rint(load_item(item, preprocessing).pixels * 255).astype(np.uint8)
        except (ImageError, UserError) as error:
            return error.message

    pending: deque[tuple[int, str, Future[Pixels | str]]] = deque()
    for place, item in found:
        pending.append((place, item.name, pool.submit(pixels, item)))
        del item  # it may hold its bytes
        if len(pending) > _AHEAD * available_cores():
            first, name, result = pending.popleft()
            yield first, name, result.result()
    for place, name, result in pending:
        yield place, name, result.result()
