"""Labelled images to evaluate on: never those that chose η or calibrated, where the data has a test part."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sad_runtime.errors import UserError
from sad_runtime.labelled import FOLDERS
from sad_runtime.manifest import Preprocessing

from ..data import ImageSet, find_data, find_labelled
from ..data.digits import DigitsSource, digits_splits
from ..data.sources import is_embedded
from .work import Images


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
        notes: What lies there and was not used; sentences.
    """

    images: Images
    source: str
    split: str
    selection: str
    skipped: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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
    strict: bool = False,
) -> Labelled:
    """Some images of a source, with their labels.

    Args:
        name: As for :func:`sad_deploy.data.find_data`: ``digits``, ``cifar10:PATH``, a folder, a list,
            archives or tables of images.
        preprocessing: From an image file to the network's input.
        classes: Names in the order of the logits.
        count: Most images.
        seed: Decides which, but for a data set that has its own test images.
        labels: Of images in folders; see :meth:`~sad_runtime.labelled.Labels.read`.
        strict: Whether an image that cannot be used is fatal; else another one is taken for it.

    Raises:
        UserError: No such data, no labels, labels that are none of the classes, or no image that can be used.
    """
    if is_embedded(name):
        return _embedded(name, preprocessing, count)
    source = find_labelled(name, classes, labels=labels, strict=strict)
    order = np.random.default_rng(seed).permutation(len(source.labels))
    taken = source.read(order, count, preprocessing)
    skipped = source.broken + taken.skipped
    if not len(taken.images):
        raise source.none_usable(len(order), skipped)
    images = Images(taken.images / np.float32(255), source.labels[order[taken.kept]])
    chosen = f"{len(images)} of {len(order)}, at random, seed {seed}"
    return Labelled(images, name, source.part or "all", chosen, skipped, taken.names, source.left_out)


def _embedded(name: str, preprocessing: Preprocessing, count: int) -> Labelled:
    """The test part of a data set that sad-deploy knows, from its beginning."""
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
