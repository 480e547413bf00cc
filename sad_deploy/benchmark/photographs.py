"""Images made up for want of real ones: the size of a small photograph, with nothing to see on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from sad_runtime.sources import FileItem

SIZE = (500, 375)
"""Width and height: the usual size of ImageNet's."""

_DIFFERENT = 32
_NOISE = (24, 32, 3)  # stretched to SIZE: smooth, so that the file is as large as a photograph's
_QUALITY = 90


def make_photographs(folder: Path, count: int) -> Iterator[FileItem]:
    """Write JPEG files of smooth random colours, always the same.

    Args:
        folder: Where to.
        count: How many; after 32 no further ones are made.

    Yields:
        The files, each once it is written.
    """
    rng = np.random.default_rng(0)
    for i in range(min(count, _DIFFERENT)):
        path = folder / f"{i:03}.jpg"
        noise = Image.fromarray(rng.integers(0, 256, _NOISE, dtype=np.uint8))
        noise.resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=_QUALITY)
        yield FileItem(os.fspath(path))
