"""A list of image files and what they show: lines of path and label, separated by commas or tabs."""

from __future__ import annotations

import os
from pathlib import Path

from sad_runtime.errors import UserError
from sad_runtime.labelled import read_list
from sad_runtime.sources.names import name_digest

from .image_source import ImageSource
from .items import FileItems
from .label_column import LabelReader

ENDINGS = (".csv", ".tsv")


def open_list(name: str, path: Path) -> ImageSource:
    """Images of a list; relative paths begin at its folder.

    Args:
        name: As the user gave it.
        path: The file.

    Raises:
        UserError: It cannot be read, or gives two labels to one image.
    """
    items, labels = FileItems(), LabelReader(name)
    folder = "" if str(path.parent) == os.curdir else str(path.parent)
    seen: dict[bytes, str | None] = {}
    for image, label in read_list(path):
        if (before := seen.setdefault(name_digest(image), label)) != label:
            raise UserError(f"{path} has two labels for {image}: {before} and {label}")
        items.add(os.path.join(folder, image))  # noqa: PTH118 - Path keeps every name for a while
        labels.add(label)
    return ImageSource.of(name, items, labels.column(), kind="classes in")
