"""Labelled images to evaluate on: never those that chose η or calibrated, where the data has a test part."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sad_runtime.errors import UserError
from sad_runtime.manifest import Preprocessing

from ..data.digits import DigitsSource, digits_splits
from ..data.folder import FolderSource
from ..data.image_set import ImageSet
from ..data.sources import find_data
from ..progress import Decoded
from .work import Images

_LIST = ".csv"


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Images, and where they come from.

    Attributes:
        images: What is attacked.
        source: As the user gave it.
        split: Which part of it.
        selection: How it was chosen among more.
        skipped: Files that could not be used, with the reason.
        names: (N,) of files, or numbers.
    """

    images: Images
    source: str
    split: str
    selection: str
    skipped: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        pixels = np.rint(self.images.pixels * 255).astype(np.uint8)
        digest = hashlib.sha256(pixels.tobytes() + self.images.labels.astype("<i8").tobytes()).hexdigest()
        return {
            "source": self.source,
            "split": self.split,
            "images": len(self.images),
            "selection": self.selection,
            "sha256": digest,
            "skipped": list(self.skipped),
        }


def labelled(
    name: str,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    *,
    count: int,
    seed: int,
    decoded: Decoded | None = None,
) -> Labelled:
    """Some images of a source, with their labels.

    Args:
        name: ``digits``, ``cifar10:PATH``, ``cifar100:PATH``, a folder of class folders, or a list
            ``FILE.csv`` of ``path,label`` lines, a label being a class's name or number.
        preprocessing: From an image file to the network's input.
        classes: Names in the order of the logits.
        count: Most images.
        seed: Decides which of a folder or a list.
        decoded: Told after every image that was read.

    Raises:
        UserError: No such data, no labels, or labels that are none of the classes.
    """
    if name.endswith(_LIST):
        source = _listed(Path(name), classes)
        return _of_folder(source, preprocessing, count, seed, decoded)
    found = find_data(name, classes=None if name == "digits" or ":" in name else tuple(classes))
    if isinstance(found, FolderSource):
        if found.classes is None:
            raise UserError(
                f"{name} has no class folders, and an evaluation needs labels",
                hint="one folder a class, or a list FILE.csv of path,label lines",
            )
        return _of_folder(found, preprocessing, count, seed, decoded)
    if found.preprocessing is not None and found.preprocessing.shape != preprocessing.shape:
        raise UserError(
            f"{name} has images of {found.preprocessing.shape}, the network takes {preprocessing.shape}"
        )
    if isinstance(found, DigitsSource):
        return _in_order(digits_splits()[2], name, count)
    test = found.load(preprocessing, calibration=0, held_out=10**9, seed=seed).test
    assert test is not None
    return _in_order(test, name, count)


def _in_order(images: ImageSet, name: str, count: int) -> Labelled:
    some = images.take(np.arange(min(count, len(images))))
    return Labelled(_images(some), name, "test", f"the first {len(some)} of {len(images)}")


def _of_folder(
    source: FolderSource, preprocessing: Preprocessing, count: int, seed: int, decoded: Decoded | None
) -> Labelled:
    images, names, skipped = source.sample(preprocessing, count, seed, decoded)
    if not len(images):
        raise UserError(
            f"none of the images of {source.name} can be used; the first: {skipped[0]}",
            hint="sad-deploy infer lists what is wrong with every file",
        )
    chosen = f"{len(images)} of {len(source.paths)}, at random, seed {seed}"
    return Labelled(_images(images), source.name, "all", chosen, skipped, names)


def _images(images: ImageSet) -> Images:
    assert images.labels is not None
    return Images((images.images / np.float32(255)).astype(np.float32), images.labels.astype(np.int64))


def _listed(path: Path, classes: Sequence[str]) -> FolderSource:
    """A list of ``path,label`` lines; relative paths begin at the list's folder.

    Raises:
        UserError: It cannot be read, or a line has no label that is a class.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list {path} cannot be read: {error}") from None
    if rows and [cell.strip().lower() for cell in rows[0][:2]] == ["path", "label"]:
        rows = rows[1:]
    if not rows:
        raise UserError(f"the list {path} names no image", hint="lines of path,label")
    paths, labels = [], []
    for number, row in enumerate(rows, start=1):
        label = _label(row[1].strip(), classes) if len(row) > 1 else None
        if label is None:
            given = repr(row[1]) if len(row) > 1 else "none"
            raise UserError(
                f"image {number} of {path} has label {given}, which is none of the {len(classes)} classes",
                hint=f"a class's name, for example {classes[0]!r}, or its number",
            )
        paths.append(path.parent / row[0])
        labels.append(label)
    return FolderSource(str(path), tuple(classes), tuple(paths), np.array(labels, np.int64))


def _label(text: str, classes: Sequence[str]) -> int | None:
    """The class of this name, else of this number."""
    if text in classes:
        return list(classes).index(text)
    return int(text) if text.isdecimal() and int(text) < len(classes) else None
