"""The embedded default: scikit-learn's 1,797 handwritten digits, upscaled from 8×8 to 16×16.

The pixels are what an 8-bit grey PNG of them holds, so an exported digit gives the same tensor at inference.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from PIL import Image

from sad_runtime.extras import require
from sad_runtime.manifest import Color, Preprocessing

from ..progress import Decoded
from .image_set import CalibrationData, ImageSet, stratified_split

SIDE = 16
CLASSES = tuple("0123456789")
PREPROCESSING = Preprocessing(color=Color.GRAY, resize=(SIDE, SIDE), crop=(SIDE, SIDE))

_SPLIT_SEED = 0
_TRAINING, _HELD_OUT = 0.7, 0.15


@dataclasses.dataclass(frozen=True)
class DigitsSource:
    """The digits as a data source. The split is fixed: the default network never saw the test part."""

    name: str = "digits"
    classes: tuple[str, ...] | None = CLASSES
    preprocessing: Preprocessing | None = PREPROCESSING
    left_out: tuple[str, ...] = ()

    @property
    def available(self) -> int:
        """Images of the training split."""
        return len(digits_splits()[0])

    def whole(self) -> DigitsSource:
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
        """All of the splits, whatever was asked for: they are small. See :class:`~.source.DataSource`."""
        training, held, test = digits_splits()
        return CalibrationData(self.name, self.classes, training, held, test)


@functools.cache
def digits_splits() -> tuple[ImageSet, ImageSet, ImageSet]:
    """Training, held-out and test images, (n, 1, 16, 16) each, with labels; stratified 70 : 15 : 15."""
    datasets = require("sklearn.datasets", extra="calibrate", need="the digits data")
    digits = datasets.load_digits()
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = np.stack([_upscaled(image) for image in small])[:, None]
    labels = digits.target.astype(np.int64)
    whole = ImageSet(images, labels)
    parts = stratified_split(labels, (_TRAINING, _HELD_OUT), np.random.default_rng(_SPLIT_SEED))
    training, held_out, test = (whole.take(part) for part in parts)
    return training, held_out, test


def _upscaled(
    image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    resized = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8)
