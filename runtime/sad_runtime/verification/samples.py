"""The held-out images that calibration puts into a bundle: ``samples.npz``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle
from ..errors import BundleError

SAMPLES = "samples.npz"


def read_samples(bundle: Bundle) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64] | None] | None:
    """Images (N, C, H, W) and their labels (N,), if they have some; None if calibration stored none.

    Raises:
        BundleError: They are not images of the manifest's shape.
    """
    if SAMPLES not in bundle.manifest.files:
        return None
    path = bundle.file(SAMPLES)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["images"]
            labels = arrays.get("labels")
    except (ValueError, OSError, KeyError, EOFError) as error:
        raise BundleError(f"{path} cannot be read: {error}", hint="calibrate again") from None
    expected = bundle.manifest.preprocessing.shape
    if (
        images.dtype != np.uint8
        or images.shape[1:] != expected
        or (labels is not None and len(labels) != len(images))
    ):
        raise BundleError(f"{path} holds no uint8 images of shape {expected}", hint="calibrate again")
    return images, labels
