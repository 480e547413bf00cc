"""Labelled images to evaluate on: never those that chose η or calibrated, where the data has a test part."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sad_runtime.devices import available_cores
from sad_runtime.errors import ImageError, UserError
from sad_runtime.labelled import FOLDERS, Labels, listed
from sad_runtime.manifest import Preprocessing
from sad_runtime.preprocessing import load
from sad_runtime.sources import FailedItem, FileItem, Item, Sources, absolute, open_sources

from .oracles import Array
from .work import Images

if TYPE_CHECKING:
    from ..data.image_set import ImageSet

_LIST = ".csv"
_EMBEDDED = ("digits", "cifar10", "cifar100")
"""What needs PyTorch or scikit-learn to be read."""


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
    labels: str = FOLDERS,
) -> Labelled:
    """Some images of a source, with their labels.

    Args:
        name: ``digits``, ``cifar10:PATH``, ``cifar100:PATH``, a list ``FILE.csv`` of ``path,label`` lines, or
            a SOURCE as ``infer`` takes it: a folder, an archive, a pattern, ``@LIST``.
        preprocessing: From an image file to the network's input.
        classes: Names in the order of the logits.
        count: Most images.
        seed: Decides which of a folder, an archive or a list.
        labels: Of a SOURCE; see :meth:`~sad_runtime.labelled.Labels.read`.

    Raises:
        UserError: No such data, no labels, or labels that are none of the classes.
    """
    if name.partition(":")[0] in _EMBEDDED:
        return _embedded(name, preprocessing, count)
    if name.endswith(_LIST):
        items = [FileItem(str(path)) for path, _ in listed(Path(name), classes)]
        read = Labels.read(name, classes, absolute(name).parent)
        return _sampled(name, items, read, preprocessing, count, seed)
    with open_sources([name]) as sources:
        return _sampled(name, sources, Labels.read(labels, classes, sources.base), preprocessing, count, seed)


def _embedded(name: str, preprocessing: Preprocessing, count: int) -> Labelled:
    """The test part of a data set that sad-deploy knows, from its beginning."""
    from ..data.digits import DigitsSource, digits_splits
    from ..data.sources import find_data

    found = find_data(name)
    if found.preprocessing is not None and found.preprocessing.shape != preprocessing.shape:
        raise UserError(
            f"{name} has images of {found.preprocessing.shape}, the network takes {preprocessing.shape}"
        )
    test: ImageSet | None = digits_splits()[2]
    if not isinstance(found, DigitsSource):
        test = found.load(preprocessing, calibration=0, held_out=10**9, seed=0).test
    assert test is not None and test.labels is not None
    some = test.take(np.arange(min(count, len(test))))
    assert some.labels is not None
    images = Images((some.images / np.float32(255)).astype(np.float32), some.labels.astype(np.int64))
    return Labelled(images, name, "test", f"the first {len(some)} of {len(test)}")


def _sampled(
    name: str,
    items: Sequence[Item] | Sources,
    labels: Labels,
    preprocessing: Preprocessing,
    count: int,
    seed: int,
) -> Labelled:
    """Images at random; one that cannot be read is skipped, and another one taken.

    Raises:
        UserError: One has no label, or none can be read.
    """
    names, truth = _names(name, items, labels)
    order = np.random.default_rng(seed).permutation(len(names))
    pixels: list[Array] = []
    kept: list[int] = []
    skipped: list[str] = []
    while len(kept) < count and len(kept) + len(skipped) < len(order):
        start = len(kept) + len(skipped)
        wanted = [int(i) for i in order[start : start + count - len(kept)]]
        for i, found in zip(wanted, _decoded(items, wanted, preprocessing), strict=True):
            if isinstance(found, str):
                skipped.append(f"{names[i]}: {found}")
            else:
                pixels.append(found)
                kept.append(i)
    if not kept:
        raise UserError(
            f"none of the images of {name} can be used; the first: {skipped[0]}",
            hint="sad-deploy infer lists what is wrong with every file",
        )
    images = Images(np.stack(pixels), np.array([truth[i] for i in kept], np.int64))
    chosen = f"{len(kept)} of {len(names)}, at random, seed {seed}"
    return Labelled(images, name, "all", chosen, tuple(skipped), tuple(names[i] for i in kept))


def _names(name: str, items: Sequence[Item] | Sources, labels: Labels) -> tuple[list[str], list[int]]:
    """Names and labels of all images.

    Raises:
        UserError: A folder or an archive cannot be read, or an image has no label.
    """
    names, truth, missing = [], [], []
    for item in items:
        if isinstance(item, FailedItem):
            raise UserError(f"{item.name}: {item.message}")
        label = labels.of(item.name)
        if label is None:
            missing.append(item.name)
        else:
            names.append(item.name)
            truth.append(label)
    if missing:
        why, hint = labels.why_missing()
        total = len(missing) + len(names)
        raise UserError(
            f"{len(missing)} of {total} images of {name} have no label: {why}, for example {missing[0]}",
            hint=hint,
        )
    return names, truth


def _decoded(
    items: Sequence[Item] | Sources, wanted: list[int], preprocessing: Preprocessing
) -> list[Array | str]:
    """Pixels (C, H, W) in [0, 1] of some of the items, or what is wrong with each, in the order asked for."""

    def read(item: Item) -> Array | str:
        try:
            pixels: Array = load(item, preprocessing).pixels
        except ImageError as error:
            return error.message
        return pixels

    chosen, last = set(wanted), max(wanted)
    with ThreadPoolExecutor(available_cores()) as pool:
        numbered = itertools.islice(enumerate(items), last + 1)
        found = {i: pool.submit(read, item) for i, item in numbered if i in chosen}
        return [found[i].result() for i in wanted]
