"""The pictures of one row: image, saliency and x + ηS, side by side in one small WebP; or the image alone."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..defended import defended_image
from ..manifest import Manifest
from ..overlay import overlay, picture

LARGEST_SIDE = 96
"""Pixels that the longer side of each of the three has at most; the page enlarges smaller ones."""

# So small that every pixel shows, and nothing is saved by losing some.
_LOSSLESS_SIDE = 16
_QUALITY = 75


def tile_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of one picture in the strip, for an input of that size."""
    scale = min(1.0, LARGEST_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def strip(
    image: npt.NDArray[np.float32], saliency: npt.NDArray[np.float32] | None, manifest: Manifest
) -> bytes:
    """Image, saliency overlay and x + ηS from left to right.

    Args:
        image: (C, H, W) in [0, 1]: what the graph was given.
        saliency: (C, H, W), S; None without a defence, where the image stands alone.
        manifest: Says how S is added.

    Returns:
        WebP; each of the three as large as :func:`tile_size` says. x + ηS is shown clipped to [0, 1].
    """
    height, width = tile_size(*image.shape[1:])
    parts = [picture(image)]
    if saliency is not None:
        parts += [overlay(image, saliency), picture(defended_image(image, saliency, manifest))]
    joined = Image.new("RGB", (len(parts) * width, height))
    for i, part in enumerate(parts):
        if part.size != (width, height):
            part = part.resize((width, height), Image.Resampling.BOX)
        joined.paste(part, (i * width, 0))
    encoded = io.BytesIO()
    lossless = max(height, width) <= _LOSSLESS_SIDE
    joined.save(encoded, "WEBP", lossless=lossless, quality=100 if lossless else _QUALITY)
    return encoded.getvalue()
