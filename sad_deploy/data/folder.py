"""A folder of images: one subfolder a class, and all below it, or one flat folder without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sad_runtime.errors import UserError
from sad_runtime.images import EXTENSIONS

from ..shorten import shorten
from .class_folders import ClassFolder, Contents, read_contents
from .image_source import ImageSource
from .items import FileItems
from .label_column import NO_LABEL, LabelColumn

_IN = "class folders in"


def open_folder(name: str, path: Path, *, may_be_empty: bool = False) -> ImageSource:
    """List a folder's images: of its class folders and all below them, or its own if it has no folders.

    Hidden entries are left out.

    Args:
        name: As the user gave it.
        path: The folder.
        may_be_empty: Whether a class folder may hold no image, as its class is known otherwise.

    Raises:
        UserError: It holds no image, or some class folders hold none (all of those are named).
    """
    contents = read_contents(name, path)
    if not contents.classes:
        if not contents.beside:
            raise UserError(
                f"{path} holds no images",
                hint="; ".join([f"read are {', '.join(sorted(EXTENSIONS))}", *contents.left_out]),
            )
        unlabelled = LabelColumn(np.full(len(contents.beside), NO_LABEL, np.int64), None)
        return ImageSource.of(name, contents.beside, unlabelled, kind=_IN, left_out=contents.left_out)
    if not may_be_empty or not any(folder.images for folder in contents.classes):
        _refuse_empty(path, contents)
    items = FileItems()
    for folder in contents.classes:
        for image in folder.images:
            items.add(image)
    sizes = [len(folder.images) for folder in contents.classes]
    labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)
    names = tuple(folder.path.name for folder in contents.classes)
    return ImageSource.of(name, items, LabelColumn(labels, names), kind=_IN, left_out=contents.left_out)


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
    return shorten([folder.path.name for folder in folders])
