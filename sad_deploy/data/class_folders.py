"""What a data folder holds: images by class, and what is left out of it.

A class is a folder at the top, with all that lies below it. What an image is, what is hidden and where links
lead is as in ``infer``; archives stay closed here.
"""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from pathlib import Path

from sad_runtime.errors import UserError
from sad_runtime.sources import LeftOut, describe_left_out, has_image_ending

from .items import FileItems


@dataclasses.dataclass(frozen=True)
class ClassFolder:
    """One folder at the top.

    Attributes:
        path: Where it is.
        images: All below it, sorted.
    """

    path: Path
    images: FileItems


def validation_beside(path: Path) -> Path | None:
    """``photos/val`` for ``photos/train``: a folder of the same parent that is named like such a part."""
    if not path.name.lower().startswith(("train", "trn")):
        return None
    try:
        beside = sorted(each for each in path.parent.iterdir() if each.is_dir())
    except OSError:
        return None
    return next((each for each in beside if each.name.lower().startswith("val")), None)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a data folder holds.

    Attributes:
        classes: Its folders, sorted by name.
        beside: Images in the folder itself, sorted.
        left_out: Sentences about what is in no class folder, if there are any, or is no image.
    """

    classes: tuple[ClassFolder, ...]
    beside: FileItems
    left_out: tuple[str, ...]


def read_contents(name: str, path: Path) -> Contents:
    """Find all images in a folder and below it.

    Hidden entries are left out and not counted. Links to folders are followed after all else, and each real
    folder is read once: an image has the class that it lies in, whatever links to it.

    Args:
        name: The folder as the user gave it, for sentences.
        path: The folder.

    Raises:
        UserError: It cannot be read, or two of the folders in it are one.
    """
    return _Reading(os.path.join(name, ""), path).contents()  # noqa: PTH118 - with a slash at its end


class _Reading:
    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.left_out = LeftOut()
        self.notes: list[str] = []
        self.linked: deque[tuple[str, FileItems]] = deque()
        self.read: set[str] = set()

    def contents(self) -> Contents:
        try:
            folders, links, beside = self.entries(str(self.path))
        except OSError as error:
            raise UserError(f"the data folder {self.path} cannot be read: {error.strerror}") from None
        classes = {name: FileItems() for name in self.claimed(sorted(folders + links))}
        for name, images in classes.items():
            self.below(name, images)
        while self.linked:
            name, images = self.linked.popleft()
            if self.is_new(name):
                self.below(name, images)
        if classes and beside:
            n, were = ("1 image", "was") if len(beside) == 1 else (f"{len(beside)} images", "were")
            self.notes.append(f"{n} beside the class folders in {self.name} {were} left out")
        if self.left_out.counts:
            self.notes.append(describe_left_out(self.left_out.counts, self.name))
        found = (ClassFolder(Path(name), images.sorted()) for name, images in classes.items())
        return Contents(tuple(found), FileItems(beside), tuple(self.notes))

    def claimed(self, folders: list[str]) -> list[str]:
        """The folders that are classes. From now on they are read as such only, not from within another."""
        here = os.path.realpath(self.path)
        self.read.add(here)
        by_place: dict[str, str] = {}
        for folder in folders:
            real = os.path.realpath(folder)
            if os.path.join(here, "").startswith(os.path.join(real, "")):  # noqa: PTH118
                self.notes.append(f"{folder} leads back to {self.name} and was left out")
            elif by_place.setdefault(real, folder) != folder:
                names = f"{Path(by_place[real]).name} and {Path(folder).name}"
                raise UserError(
                    f"{names} in {self.path} are the same folder: its images would be of two classes",
                    hint="remove one of them",
                )
        self.read |= by_place.keys()
        return list(by_place.values())

    def below(self, top: str, images: FileItems) -> None:
        """Add the images of a folder and of all that lies in it; links to folders are left for later."""
        pending = [top]
        while pending:
            name = pending.pop()
            try:
                folders, links, found = self.entries(name)
            except OSError as error:
                self.notes.append(f"the folder {name} cannot be read: {error.strerror}")
                continue
            for image in found:
                images.add(image)
            pending += filter(self.is_new, folders)
            self.linked += ((link, images) for link in links)

    def is_new(self, folder: str) -> bool:
        real = os.path.realpath(folder)
        new = real not in self.read
        self.read.add(real)
        return new

    def entries(self, name: str) -> tuple[list[str], list[str], list[str]]:
        """Folders, links to folders, and images in one folder, each sorted; other files are counted."""
        folders: list[str] = []
        links: list[str] = []
        images: list[str] = []
        with os.scandir(name) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112 - never raises
                links.append(entry.path)
            elif has_image_ending(entry.name):
                images.append(entry.path)
            else:
                self.left_out.add(entry.name)
        return folders, links, images
