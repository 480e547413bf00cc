"""Saliency pictures: the image beside its saliency, laid over the image in grey.

Shown is |S|, the largest of the channels, from 0 (dark) to the image's own 99th percentile (bright), so that
a few extreme pixels do not darken the rest.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import secrets
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from .errors import UserError
from .sources import absolute

MIN_SIDE = 224
"""Pixels that the shorter side of each half has at least."""

_SATURATION_PERCENTILE = 99
_OPACITY = 0.75
_LONGEST_NAME_BYTES = 240
# Rows of the matrices of B. Ottosson, "A perceptual color space for image processing" (2020).
_OKLAB_TO_LMS = (
    (1.0, 0.3963377774, 0.2158037573),
    (1.0, -0.1055613458, -0.0638541728),
    (1.0, -0.0894841775, -1.2914855480),
)
_LMS_TO_RGB = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)


@functools.cache
def color_map() -> npt.NDArray[np.uint8]:
    """(256, 3) sRGB: lightness grows evenly from near black to near white, hue turns from violet to yellow.

    A curve in OKLab, in which equal distances look equal; its points are spaced evenly along it.
    """
    t = np.linspace(0, 1, 4096)
    lightness = 0.16 + 0.79 * t
    hue = np.deg2rad(-75 + 180 * t)
    chroma = 0.02 + 0.15 * np.sin(np.pi * np.clip(0.06 + 0.84 * t, 0, 1))
    curve = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    even = np.linspace(0, length[-1], 256)
    curve = np.stack([np.interp(even, length, curve[:, i]) for i in range(3)], axis=1)
    linear = np.clip((curve @ np.array(_OKLAB_TO_LMS).T) ** 3 @ np.array(_LMS_TO_RGB).T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.round(encoded * 255), dtype=np.uint8)


def magnitude(saliency: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """|S| as it is shown: (C, H, W) → (H, W) in [0, 1]; a map of zeros stays zero."""
    largest = np.asarray(np.abs(saliency).max(axis=0), dtype=np.float64)
    largest = np.nan_to_num(largest, posinf=float(np.finfo(np.float32).max))
    scale = np.percentile(largest, _SATURATION_PERCENTILE)
    if scale == 0:  # fewer than one pixel in a hundred is salient: show those
        scale = max(largest.max(), np.float64(np.finfo(np.float32).tiny))
    return np.asarray(np.minimum(largest / scale, 1.0))


def render(image: npt.NDArray[np.float32], saliency: npt.NDArray[np.float32]) -> Image.Image:
    """Image and saliency overlay, side by side.

    Args:
        image: (C, H, W) in [0, 1], C 1 or 3: what the graph was given.
        saliency: (C, H, W), S.

    Returns:
        An RGB picture; each half is the input enlarged by a whole factor, nearest neighbour, until its
        shorter side has at least 224 pixels.
    """
    height, width = image.shape[1:]
    pixels = np.round(np.broadcast_to(image, (3, height, width)) * 255).astype(np.uint8).transpose(1, 2, 0)
    grey = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"), dtype=np.float64)[..., None]
    shown = magnitude(saliency)
    colors = color_map()[np.round(shown * 255).astype(np.uint8)]
    overlay = np.round((1 - _OPACITY) * grey + _OPACITY * colors).astype(np.uint8)
    factor = -(-MIN_SIDE // min(height, width))
    halves = [
        Image.fromarray(np.ascontiguousarray(half)).resize(
            (width * factor, height * factor), Image.Resampling.NEAREST
        )
        for half in (pixels, overlay)
    ]
    gap = 8
    picture = Image.new("RGB", (2 * width * factor + gap, height * factor), "white")
    picture.paste(halves[0], (0, 0))
    picture.paste(halves[1], (width * factor + gap, 0))
    return picture


class OverlayWriter:
    """Writes overlays as PNG under one folder, which mirrors the sources. Safe to call from several threads.

    Args:
        folder: Where; made when needed.
        base: Folder (absolute) to which the images' paths are taken relative; see
            :class:`~sad_runtime.sources.Images`.

    Raises:
        UserError: The folder cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str], base: Path) -> None:
        self.folder = Path(folder)
        self.base = base
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write overlays to {folder}: {error.strerror}") from error

    def path(self, image: Path) -> Path:
        """Where the overlay of an image goes: ``a/b.jpg`` → ``FOLDER/a/b.jpg.png``; no two images share one.

        Raises:
            ValueError: The image does not lie under the base.
        """
        relative = absolute(image).relative_to(self.base)
        name = os.fsencode(relative.name)
        if len(name) > _LONGEST_NAME_BYTES:
            short = os.fsdecode(name[: _LONGEST_NAME_BYTES - 20])
            return self.folder / relative.parent / f"{short}~{hashlib.sha256(name).hexdigest()[:16]}.png"
        return self.folder / relative.parent / f"{relative.name}.png"

    def write(self, path: Path, image: npt.NDArray[np.float32], saliency: npt.NDArray[np.float32]) -> Path:
        """Render and write one overlay, whole or not at all.

        Args:
            path: The image's file.
            image: See :func:`render`.
            saliency: See :func:`render`.

        Returns:
            The file written.

        Raises:
            UserError: It cannot be written.
        """
        target = self.path(path)
        temporary = target.with_name(f".{secrets.token_hex(8)}.partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                render(image, saliency).save(temporary, "PNG", compress_level=1)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            reason = "no room on the disk" if error.errno == errno.ENOSPC else error.strerror or str(error)
            raise UserError(f"cannot write the overlay {target}: {reason}") from error
        return target
