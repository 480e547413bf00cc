"""CIFAR-10 and CIFAR-100 from the files that torchvision downloads; nothing is downloaded here.

torchvision compares the files' MD5 with the published ones before it unpickles them, so no other pickle runs.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torchvision

from sad_runtime.errors import UserError
from sad_runtime.manifest import Color, Preprocessing

from ..progress import Decoded
from .image_set import CalibrationData, ImageSet, stratified_split

SIDE = 32
PREPROCESSING = Preprocessing(color=Color.RGB, resize=(SIDE, SIDE), crop=(SIDE, SIDE))

_DATASETS: dict[str, Any] = {
    "cifar10": torchvision.datasets.CIFAR10,
    "cifar100": torchvision.datasets.CIFAR100,
}
_SPLIT_SEED = 0
_TRAINING_IMAGES = 50_000


@dataclasses.dataclass(frozen=True)
class CifarSource:
    """The training file for calibration; half of the test file (stratified) to choose η, half to report.

    Nothing is held out of the training images: the network has seen them all, so they would show no drop.
    """

    name: str
    dataset: str
    root: Path
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing | None = PREPROCESSING
    left_out: tuple[str, ...] = ()

    @property
    def available(self) -> int:
        """Images of the training file, the same in both datasets."""
        return _TRAINING_IMAGES

    def whole(self) -> CifarSource:
        """Nothing is held out of the training images as it is."""
        return self

    def load(
        self,
        preprocessing: Preprocessing,
        *,
        calibration: int,
        held_out: int,
        seed: int,
        decoded: Decoded | None = None,
    ) -> CalibrationData:
        """See :class:`~.source.DataSource`; ``held_out`` also limits the test images."""
        training = _images(_open(self.dataset, self.root, train=True))
        test = _images(_open(self.dataset, self.root, train=False))
        assert test.labels is not None  # CIFAR is labelled
        first, second = stratified_split(test.labels, (0.5,), np.random.default_rng(_SPLIT_SEED))
        chosen = np.random.default_rng(seed).permutation(len(training))[:calibration]
        return CalibrationData(
            self.name,
            self.classes,
            training.take(chosen),
            test.take(first[:held_out]),
            test.take(second[:held_out]),
        )


def find_cifar(name: str, dataset: str, path: Path) -> CifarSource:
    """Check that the dataset's files are there and whole.

    Args:
        name: As the user gave it.
        dataset: ``cifar10`` or ``cifar100``.
        path: The folder given to torchvision as root, or the dataset's own folder in it.

    Raises:
        UserError: The files are missing or not the published ones.
    """
    root = path.parent if path.name == _DATASETS[dataset].base_folder else path
    return CifarSource(name, dataset, root, classes=tuple(_open(dataset, root, train=False).classes))


def _open(dataset: str, root: Path, *, train: bool) -> Any:
    kind = _DATASETS[dataset]
    try:
        return kind(root, train=train, download=False)
    except RuntimeError:
        raise UserError(
            f"{root} does not hold the published files of {kind.__name__} ({kind.base_folder}/…)",
            hint=f"torchvision.datasets.{kind.__name__}({str(root)!r}, download=True) fetches them",
        ) from None


def _images(dataset: Any) -> ImageSet:
    pixels = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))
    return ImageSet(pixels, np.asarray(dataset.targets, dtype=np.int64))
