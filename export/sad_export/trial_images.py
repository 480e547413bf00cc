"""Images to try a graph on: real ones from a folder, or smoothed noise where there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sad_runtime.errors import ImageError, UserError
from sad_runtime.manifest import Color, Preprocessing
from sad_runtime.preprocessing import load
from sad_runtime.sources import open_sources

from .graph.expression import Array


def read_images(folder: Path, count: int, channels: int, height: int, width: int) -> Array:
    """Readable images from all over a folder, (N, C, H, W) float32 in [0, 1]; at most ``count``.

    Raises:
        UserError: None can be read, or the graph takes other than one, three or four channels.
    """
    color = Color.of(channels)
    if color is None:
        raise UserError(
            f"images are read with 1, 3 or 4 channels, this graph takes {channels}", hint="leave --images out"
        )
    preprocessing = Preprocessing(color=color, resize=(height, width), crop=(height, width))
    read: list[Array] = []
    with open_sources([folder]) as sources:
        items = list(sources)
        # Evenly spread, as one class comes after the other; others stand in for what is unreadable.
        first = np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)
        for i in dict.fromkeys([*first.tolist(), *range(len(items))]):
            item = items[i]
            try:
                read.append(load(item, preprocessing).pixels)
            except ImageError:
                continue
            if len(read) == count:
                break
    if not read:
        raise UserError(f"no image in {folder} can be read")
    return np.stack(read)


def smooth_noise(count: int, channels: int, height: int, width: int) -> Array:
    """Smooth random images, (N, C, H, W) float32 in [0, 1].

    White noise drives most networks into one class, and flat patches make maxima tie.
    """
    rng = np.random.default_rng(0)
    coarse = rng.random((count * channels, -(-height // 8) + 1, -(-width // 8) + 1), dtype=np.float32)
    smooth = [Image.fromarray(map_).resize((width, height), Image.Resampling.BICUBIC) for map_ in coarse]
    images: Array = np.clip(np.stack([np.asarray(map_) for map_ in smooth]), 0, 1)
    return images.reshape(count, channels, height, width)
