"""Decoded images in memory, their splits, and batches of them.

Images are kept as 8-bit pixels, so a default calibration at 224×224 (4,096 images) takes 0.6 GB.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sad_runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images after the manifest's preprocessing.

    Attributes:
        images: (n, C, H, W) uint8.
        labels: (n,) int64 class indices, or None.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: npt.NDArray[np.intp]) -> ImageSet:
        """The images at some indices, in their order."""
        return ImageSet(self.images[indices], None if self.labels is None else self.labels[indices])

    def batch(self, indices: npt.NDArray[np.intp]) -> tuple[Tensor, Tensor | None]:
        """Pixels (N, C, H, W) float32 in [0, 1], as inference sees them, and labels (N,)."""
        import torch

        chosen = self.take(indices)
        pixels = torch.from_numpy(chosen.images / np.float32(255))
        return pixels, None if chosen.labels is None else torch.from_numpy(chosen.labels)


@dataclasses.dataclass(frozen=True)
class CalibrationData:
    """What one calibration works with.

    Attributes:
        name: As the user gave it.
        classes: Class names in the order of the labels, or None without labels.
        calibration: For Algorithm 1.
        held_out: To choose η on; not in ``calibration``.
        test: To report clean accuracy on, in neither of the others; None where there are too few images to
            spare, and ``held_out`` serves.
        validation: Name of the source of ``held_out`` and ``test``, if that is another one.
        skipped: Files that could not be used, with the reason.
    """

    name: str
    classes: tuple[str, ...] | None
    calibration: ImageSet
    held_out: ImageSet
    test: ImageSet | None = None
    validation: str | None = None
    skipped: tuple[str, ...] = ()

    def with_test(self, least: int, seed: int) -> CalibrationData:
        """The held-out images in two halves, one of them for testing, if there are enough and no others.

        Args:
            least: Images that either half must have.
            seed: Decides which are which.
        """
        n = len(self.held_out)
        if self.test is not None or n < 2 * least:
            return self
        labels = np.zeros(n, dtype=np.int64) if self.held_out.labels is None else self.held_out.labels
        first, second = stratified_split(labels, (0.5,), np.random.default_rng(seed))
        return dataclasses.replace(self, held_out=self.held_out.take(first), test=self.held_out.take(second))


def training_batches(
    images: ImageSet, *, batch_size: int, batches: int, seed: int, first: int = 0
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Exactly ``batches`` full batches: epochs reshuffled from the seed, each epoch's short rest dropped.

    Args:
        images: To take them from.
        batch_size: Images in each.
        batches: How many there are.
        seed: Of the order.
        first: How many of them to leave out at the beginning, as work that is taken up again does.

    Raises:
        UserError: There are fewer images than two batches.
    """
    check_enough(len(images), batch_size)
    return _training_batches(images, batch_size, range(first, batches), np.random.default_rng(seed))


def _training_batches(
    images: ImageSet, batch_size: int, batches: range, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor | None]]:
    per_epoch = len(images) // batch_size
    order = np.arange(len(images))
    for index in range(batches.stop):
        if index % per_epoch == 0:
            order = rng.permutation(len(images))
        if index not in batches:
            continue
        start = index % per_epoch * batch_size
        yield images.batch(order[start : start + batch_size])


def every_batch(images: ImageSet, *, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Every image once, in order; the last batch may be short."""
    for start in range(0, len(images), batch_size):
        yield images.batch(np.arange(start, min(start + batch_size, len(images))))


def check_enough(images: int, batch_size: int) -> None:
    """Refuse fewer images than two batches: their statistics would be those of one batch.

    Raises:
        UserError: There are too few.
    """
    if images < 2 * batch_size:
        raise UserError(
            f"{images} calibration images are fewer than two batches of {batch_size}",
            hint=f"add images, or use --batch-size {images // 2} or less; 128 and more give stable statistics"
            if images >= 4
            else "add images; batches of 128 and more give stable statistics",
        )


def stratified_split(
    labels: npt.NDArray[np.int64], shares: tuple[float, ...], rng: np.random.Generator
) -> list[npt.NDArray[np.intp]]:
    """Shuffled indices in parts; every class is divided in the same proportions.

    Args:
        labels: (n,) class indices.
        shares: Of every part but the last, which takes the rest.
        rng: Decides the shuffle.

    Returns:
        One array of indices a part, disjoint, together all of them.
    """
    parts: list[list[npt.NDArray[np.intp]]] = [[] for _ in range(len(shares) + 1)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        ends = np.round(np.cumsum(shares) * len(members)).astype(int)
        for part, piece in zip(parts, np.split(members, ends), strict=True):
            part.append(piece)
    return [rng.permutation(np.concatenate(part)) for part in parts]
