"""Images of anything that ``infer`` reads: archives, patterns, lists of paths; classes by folders' names.

Where the classes are known, the first folder of an image that is named like one of them decides. Where not,
the folders at the top are the classes, below what all images have in common.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator, Sequence, Set

import numpy as np

from sad_runtime.errors import UserError
from sad_runtime.labelled import FOLDERS, Labels
from sad_runtime.sources import FailedItem, Item, describe_left_out, open_sources

from .image_source import ImageSource
from .items import Places
from .label_column import NO_LABEL, LabelColumn, LabelReader
from .parts import part_of


class NamedItems:
    """The items of some SOURCE arguments; see :func:`~sad_runtime.sources.open_sources`.

    Args:
        sources: As the user gave them.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self._sources = tuple(sources)
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def at(self, places: Places) -> Iterator[tuple[int, Item]]:
        """See :class:`~.items.Items`; in the order of the sources."""
        wanted = {int(place) for place in places}
        # Not as a context: members of a zip are read after they were given, and keep their archive open.
        opened = open_sources(self._sources)
        for place, item in enumerate(itertools.islice(opened, max(wanted, default=-1) + 1)):
            if place in wanted:
                yield place, item


def open_labelled(
    name: str, sources: Sequence[str], classes: Sequence[str], labels: str = FOLDERS
) -> ImageSource:
    """Images whose classes are known, each with its label.

    Args:
        name: As the user gave it.
        sources: What is read.
        classes: Names in the order of the logits.
        labels: Where the labels come from; see :meth:`~sad_runtime.labelled.Labels.read`.

    Raises:
        UserError: A folder or an archive cannot be read, or an image has no label.
    """
    items = NamedItems(sources)
    found: list[int] = []
    missing, example = 0, ""
    with open_sources(items._sources) as opened:
        truth = Labels.read(labels, classes, opened.base)
        for item in opened:
            _refuse_failed(item)
            label = truth.of(item.name)
            if label is None:
                missing, example = missing + 1, example or item.name
            found.append(NO_LABEL if label is None else label)
    items.count = len(found)
    if missing:
        why, hint = truth.why_missing()
        raise UserError(
            f"{missing} of {len(found)} images of {name} have no label: {why}, for example {example}",
            hint=hint,
        )
    return ImageSource.of(
        name, items, LabelColumn(np.array(found, np.int64), tuple(classes)), kind="folders in"
    )


def open_named(name: str, sources: Sequence[str]) -> ImageSource:
    """Images with the folders at the top as classes; without labels where there are no such folders.

    Args:
        name: As the user gave it.
        sources: What is read.

    Raises:
        UserError: A folder or an archive cannot be read.
    """
    items = NamedItems(sources)
    folders: dict[str, int] = {}
    each: list[int] = []
    with open_sources(items._sources) as opened:
        for item in opened:
            _refuse_failed(item)
            each.append(folders.setdefault(os.path.dirname(item.name), len(folders)))  # noqa: PTH120
        left_out = opened.other_endings
    items.count = len(each)
    labels = LabelReader(name)
    classes = _classes([*folders])
    _refuse_parts(name, folders, {each for each in classes if each is not None})
    for folder in each:
        labels.add(classes[folder])
    notes = (describe_left_out(left_out, name),) if left_out else ()
    return ImageSource.of(name, items, labels.column(), kind="folders in", left_out=notes)


def _classes(folders: Sequence[str]) -> list[str | None]:
    """The folder at the top for each, below what all have in common; None for that itself."""
    if len(folders) < 2:
        return [None] * len(folders)
    split = [folder.split("/") for folder in folders]
    common = sum(1 for _ in itertools.takewhile(lambda each: len(set(each)) == 1, zip(*split, strict=False)))
    return [parts[common] if len(parts) > common else None for parts in split]


def _refuse_parts(name: str, folders: Collection[str], classes: Set[str]) -> None:
    """``photos.zip/train/cat/1.jpg`` is no image of the class ``train``.

    Raises:
        UserError: All folders at the top are named like parts of a data set, and hold folders.
    """
    nested = all(folder.rpartition("/")[2] not in classes for folder in folders)
    if nested and classes and all(part_of(each) is not None for each in classes):
        raise UserError(
            f"{name} holds parts of a data set: {', '.join(sorted(classes))}",
            hint="unpack it: of a folder, train/ calibrates and val/ chooses eta",
        )


def _refuse_failed(item: Item) -> None:
    if isinstance(item, FailedItem):
        raise UserError(f"{item.name}: {item.message}")
