"""A folder of images: one subfolder a class, and all below it, or one flat folder of images without labels.

Images are read by the same code as at inference, each once, and only as many as are asked for.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sad_runtime.errors import ImageError, UserError
from sad_runtime.images import EXTENSIONS
from sad_runtime.manifest import Preprocessing
from sad_runtime.preprocessing import load
from sad_runtime.sources import FileItem

from ..progress import Decoded
from .class_folders import ClassFolder, Contents, read_contents
from .image_set import CalibrationData, ImageSet, stratified_split

_HELD_OUT = 0.2
_NAMED = 5
_DECODE_THREADS = min(8, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files by class.

    Attributes:
        name: As the user gave it.
        classes: Names of the class folders, sorted or as :meth:`in_order` says; None for a flat folder.
        paths: All files.
        labels: (n,) index of each file's class; zeros for a flat folder.
        preprocessing: None: a folder fits any network.
        left_out: Sentences about what in the folder is not among the files.
        share: Of every class that is held out.
    """

    name: str
    classes: tuple[str, ...] | None
    paths: tuple[Path, ...]
    labels: npt.NDArray[np.int64]
    preprocessing: Preprocessing | None = None
    left_out: tuple[str, ...] = ()
    share: float = _HELD_OUT

    def whole(self) -> FolderSource:
        """The same folder, but that nothing is held out of it."""
        return dataclasses.replace(self, share=0.0)

    @property
    def available(self) -> int:
        """Files that are not held out."""
        return len(self._split(seed=0)[1])

    def in_order(self, classes: Sequence[str], *, given_by: str) -> FolderSource:
        """The same images with labels in another order of classes, some of which may have no image.

        Args:
            classes: All names, in the order of the network's outputs.
            given_by: Where they come from, for the message.

        Raises:
            UserError: A folder is none of them.
        """
        if self.classes is None:
            return self
        unknown = [name for name in self.classes if name not in classes]
        if unknown:
            shown = ", ".join(unknown[:_NAMED]) + (" …" if len(unknown) > _NAMED else "")
            raise UserError(
                f"{len(unknown)} of {len(self.classes)} class folders in {self.name} are not in {given_by}: "
                f"{shown}",
                hint=f"name the folders as {given_by} does, for example {classes[0]!r}",
            )
        index = np.array([classes.index(name) for name in self.classes], dtype=np.int64)
        return dataclasses.replace(self, classes=tuple(classes), labels=index[self.labels])

    def _split(self, seed: int) -> list[npt.NDArray[np.intp]]:
        """Indices held out, and the others; how many does not depend on the seed."""
        return stratified_split(self.labels, (self.share,), np.random.default_rng(seed))

    def load(
        self,
        preprocessing: Preprocessing,
        *,
        calibration: int,
        held_out: int,
        seed: int,
        decoded: Decoded | None = None,
    ) -> CalibrationData:
        """See :class:`~.source.DataSource`. A fifth of every class is held out; there is no test part.

        Files that cannot be used are skipped and listed.

        Raises:
            UserError: None can be used.
        """
        held, rest = self._split(seed)
        reader = _Reader(self, preprocessing, min(calibration, len(rest)) + min(held_out, len(held)), decoded)
        with ThreadPoolExecutor(_DECODE_THREADS) as pool:
            for_calibration = reader.read(pool, rest, calibration)
            for_held_out = reader.read(pool, held, held_out)
        if not len(for_calibration):
            raise UserError(
                f"none of the {len(rest)} images of {self.name} can be used; the first: {reader.skipped[0]}",
                hint="sad-deploy infer lists what is wrong with every file",
            )
        return CalibrationData(
            self.name, self.classes, for_calibration, for_held_out, skipped=tuple(reader.skipped)
        )


class _Reader:
    """Reads files until there are enough good images, so that a broken one costs no batch."""

    def __init__(
        self, source: FolderSource, preprocessing: Preprocessing, wanted: int, decoded: Decoded | None
    ) -> None:
        self.source = source
        self.preprocessing = preprocessing
        self.wanted = wanted
        self.decoded = decoded
        self.done = 0
        self.skipped: list[str] = []

    def read(self, pool: ThreadPoolExecutor, candidates: npt.NDArray[np.intp], limit: int) -> ImageSet:
        pixels: list[npt.NDArray[np.uint8]] = []
        kept: list[int] = []
        position = 0
        while position < len(candidates) and len(pixels) < limit:
            chunk = candidates[position : position + limit - len(pixels)]
            position += len(chunk)
            for index, result in zip(chunk, pool.map(self._read_one, chunk), strict=True):
                if isinstance(result, str):
                    self.skipped.append(result)
                    continue
                pixels.append(result)
                kept.append(int(index))
                self.done += 1
                if self.decoded is not None:
                    self.decoded(self.done, self.wanted)
        images = np.stack(pixels) if pixels else np.empty((0, *self.preprocessing.shape), dtype=np.uint8)
        return ImageSet(images, None if self.source.classes is None else self.source.labels[kept])

    def _read_one(self, index: int) -> npt.NDArray[np.uint8] | str:
        path = self.source.paths[index]
        try:
            # Inference divides 8-bit pixels by 255; this undoes exactly that.
            return np.rint(load(FileItem(str(path)), self.preprocessing).pixels * 255).astype(np.uint8)
        except ImageError as error:
            return f"{path}: {error.message}"


def find_folder(name: str, path: Path, *, may_be_empty: bool = False, option: str = "--data") -> FolderSource:
    """List a folder's images: of its class folders and all below them, or its own if it has no folders.

    Hidden entries are left out.

    Args:
        name: As the user gave it.
        path: The folder.
        may_be_empty: Whether a class folder may hold no image, as its class is known otherwise.
        option: Which one names it.

    Raises:
        UserError: It is no folder, holds no image, some class folders hold none (all of those are named), or
            its folders are parts of a data set.
    """
    if not path.is_dir():
        raise UserError(
            f"there is no data folder {path}",
            hint="--data takes a folder, digits, cifar10:PATH or cifar100:PATH; --val-data a folder",
        )
    contents = read_contents(name, path)
    if not contents.classes:
        if not contents.beside:
            raise UserError(
                f"{path} holds no images",
                hint="; ".join([f"read are {', '.join(sorted(EXTENSIONS))}", *contents.left_out]),
            )
        labels = np.zeros(len(contents.beside), dtype=np.int64)
        return FolderSource(name, None, contents.beside, labels, left_out=contents.left_out)
    _refuse_splits(path, contents, option)
    if not may_be_empty or not any(folder.images for folder in contents.classes):
        _refuse_empty(path, contents)
    sizes = [len(folder.images) for folder in contents.classes]
    return FolderSource(
        name,
        tuple(folder.path.name for folder in contents.classes),
        tuple(image for folder in contents.classes for image in folder.images),
        np.repeat(np.arange(len(sizes)), sizes).astype(np.int64),
        left_out=contents.left_out,
    )


def _refuse_splits(path: Path, contents: Contents, option: str) -> None:
    """``photos/train/cat/1.jpg`` is not an image of the class ``train``."""
    splits = [folder for folder in contents.classes if folder.is_named_like_a_split]
    nested = [folder for folder in splits if folder.is_nested]
    if not nested or 2 * len(splits) <= len(contents.classes):
        return
    training = next((folder for folder in nested if folder.path.name.lower().startswith("train")), nested[0])
    other = next((folder for folder in nested if folder is not training), None)
    others = "" if other is None or option != "--data" else f" --val-data {other.path}"
    raise UserError(
        f"{len(nested)} of {len(contents.classes)} class folders in {path} hold no images themselves: "
        f"{_names(nested)}",
        hint=f"if {training.path.name} is a split of the data, use {option} {training.path}" + others,
    )


def _refuse_empty(path: Path, contents: Contents) -> None:
    empty = [folder for folder in contents.classes if not folder.images]
    if not empty:
        return
    advice = "every subfolder is a class; remove the empty ones if the network does not know them"
    raise UserError(
        f"{len(empty)} of {len(contents.classes)} class folders in {path} hold no images: {_names(empty)}",
        hint="; ".join([advice, *contents.left_out]),
    )


def _names(folders: Sequence[ClassFolder]) -> str:
    more = f" and {len(folders) - _NAMED} more" if len(folders) > _NAMED else ""
    return ", ".join(folder.path.name for folder in folders[:_NAMED]) + more
