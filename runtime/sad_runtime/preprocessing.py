"""Decoded image → (C, H, W) float32 in [0, 1], exactly as the manifest says.

Equal to torchvision's ``Resize`` (on PIL images, antialiased), ``CenterCrop`` and ``ToTensor`` to at most one
of 255 levels, but usually only the crop is resized.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .errors import ErrorCode, ImageError
from .images import MAX_PIXELS, decode
from .manifest import Color, Interpolation, Preprocessing
from .sources import Item

_FILTERS = {
    Interpolation.NEAREST: Image.Resampling.NEAREST,
    Interpolation.BILINEAR: Image.Resampling.BILINEAR,
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
}
# Not LAB: Pillow takes its L for grey, but L* is no luma.
_CONVERTIBLE = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"}
_SIXTEEN_BITS = {"I;16", "I;16L", "I;16B", "I;16N"}

_BITS_PER_SAMPLE = 258  # of TIFF

# An image that grows is resized as a whole up to this many pixels.
_WHOLE_PIXELS = 1 << 22
# Without a filter, each side up to this length.
_LONGEST_NEAREST = 1 << 24


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """One image as the graph's input.

    Attributes:
        pixels: (C, H, W) float32 in [0, 1].
        frames: Pictures in the file, of which this is the first.
    """

    pixels: npt.NDArray[np.float32]
    frames: int


def load(
    item: Item, preprocessing: Preprocessing, *, fast: bool = False, max_pixels: int = MAX_PIXELS
) -> Loaded:
    """Read one image as the graph's input.

    Args:
        item: Where it is.
        preprocessing: What the manifest says.
        fast: Decode a JPEG at a half, a quarter or an eighth, if the resize needs no more. The pixels differ.
        max_pixels: Most pixels that are decoded.

    Raises:
        ImageError: The image cannot be used.
    """
    return load_bytes(item.read(), preprocessing, fast=fast, max_pixels=max_pixels)


def load_bytes(
    data: bytes, preprocessing: Preprocessing, *, fast: bool = False, max_pixels: int = MAX_PIXELS
) -> Loaded:
    """Decode one image file as the graph's input.

    Args:
        data: The file.
        preprocessing: What the manifest says.
        fast: As for :func:`load`.
        max_pixels: Most pixels that are decoded.

    Raises:
        ImageError: The image cannot be used.
    """
    needed = functools.partial(resized_shape, resize=preprocessing.resize) if fast else None
    decoded = decode(data, exif=preprocessing.exif_orientation, fast=needed, max_pixels=max_pixels)
    return Loaded(to_array(decoded.image, preprocessing), decoded.frames)


def to_array(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """Turn a decoded image into the graph's input: colour, resize, centre crop, scale.

    A crop larger than the resized image is padded with zeros, as torchvision's is.

    Args:
        image: Any size of at least 1×1, any mode.
        preprocessing: What the manifest says.

    Returns:
        (C, H, W) float32 in [0, 1].

    Raises:
        ImageError: The mode has no defined conversion, or a resize would be too large.
    """
    cropped = resize_and_crop(to_color(image, preprocessing.color), preprocessing)
    pixels = np.asarray(cropped, dtype=np.uint8)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return np.divide(pixels, np.float32(255), dtype=np.float32, order="C")


def to_color(image: Image.Image, color: Color) -> Image.Image:
    """Convert any mode to the manifest's, 8 bits a channel.

    Transparency is dropped, not composited: that is what the loaders of the usual training pipelines do,
    so a picture gives the tensor that the network was trained on. Sixteen-bit grey is scaled, not clipped.

    Raises:
        ImageError: ``unsupported``: 32-bit integers beyond 16 bits, floats, or a mode Pillow cannot convert.
    """
    if image.mode == color.value:
        return image
    if image.mode in _SIXTEEN_BITS or image.mode == "I":
        image = _from_sixteen_bits(image)
    elif image.mode == "F":
        raise ImageError(ErrorCode.UNSUPPORTED, "32-bit float pixels have no defined range")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the way on which Pillow does not warn
    if image.mode not in _CONVERTIBLE:
        raise ImageError(
            ErrorCode.UNSUPPORTED, f"colour mode {image.mode} has no defined conversion to {color.value}"
        )
    return image.convert(color.value)


def resize_and_crop(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize and centre-crop: (width, height) of the result is the manifest's crop.

    Args:
        image: Mode ``L``, ``RGB`` or ``RGBA``.
        preprocessing: What the manifest says.

    Raises:
        ImageError: ``too-large``: a resize as a whole to more pixels than an image may have.
    """
    height, width = resized_shape(image.height, image.width, preprocessing.resize)
    crop_height, crop_width = preprocessing.crop
    top, bottom, pad_top = _crop_span(height, crop_height)
    left, right, pad_left = _crop_span(width, crop_width)
    span = (left, top, right, bottom)
    if (width, height) == image.size:
        result = image.crop(span)
    elif preprocessing.interpolation is Interpolation.NEAREST:
        result = _nearest(image, height, width, span)
    elif _may_resize_span(image, height, width, preprocessing):
        result = _resize_span(image, height, width, span, _FILTERS[preprocessing.interpolation])
    else:
        if width * height > MAX_PIXELS:
            raise ImageError(ErrorCode.TOO_LARGE, f"would be resized to {width}×{height} pixels")
        result = image.resize((width, height), _FILTERS[preprocessing.interpolation]).crop(span)
    if result.size == (crop_width, crop_height):
        return result
    padded = Image.new(result.mode, (crop_width, crop_height))
    padded.paste(result, (pad_left, pad_top))
    return padded


def _may_resize_span(image: Image.Image, height: int, width: int, preprocessing: Preprocessing) -> bool:
    """Whether :func:`_resize_span` gives what a whole resize does, and saves work.

    Pillow rounds to 8 bits between its two passes, so their order shows: bicubic overshoots differ by up to
    20 levels. It goes across first, as `_resize_span` does, unless an image that is taller than twice its
    width shrinks, or its aspect changes. An image that grows gains nothing, unless it is long and thin.
    """
    if not isinstance(preprocessing.resize, int) or image.mode == Color.RGBA.value:
        return False  # Pillow multiplies by the fourth channel and divides again, each time it resizes
    if height >= image.height:
        return width * height > _WHOLE_PIXELS
    return image.height <= 2 * image.width


def _nearest(image: Image.Image, height: int, width: int, span: tuple[int, int, int, int]) -> Image.Image:
    """The part ``span`` of the image resized to (width, height) without a filter, as Pillow does it."""
    left, top, right, bottom = span
    columns, rows = nearest_samples(image.width, width), nearest_samples(image.height, height)
    return Image.fromarray(np.asarray(image)[rows[top:bottom, None], columns[left:right]])


def nearest_samples(length: int, resized: int) -> npt.NDArray[np.intp]:
    """(resized,) index of the sample that each pixel of a resized axis is; Pillow, too, adds steps up."""
    if resized > _LONGEST_NEAREST:
        raise ImageError(ErrorCode.TOO_LARGE, f"a side would be resized to {resized} pixels")
    step = length / resized
    steps = np.full(resized, step)
    steps[0] = step * 0.5
    return np.minimum(np.cumsum(steps).astype(np.intp), length - 1)


def _resize_span(
    image: Image.Image,
    height: int,
    width: int,
    span: tuple[int, int, int, int],
    resample: Image.Resampling,
) -> Image.Image:
    """The part ``span`` (left, top, right, bottom) of the image resized to (width, height).

    Equal to a whole resize to one level of 255. Pillow keeps a box in single precision, which moves its
    weights by a unit in the last place; were both passes made with a box, both could round the other way, and
    a pixel be two levels off. So only one is: for bilinear weights, which are positive, that of the longer
    side, of which a crop leaves out more; bicubic ones need the first pass whole.
    """
    left, top, right, bottom = span
    size = (right - left, bottom - top)
    grows = height >= image.height  # a whole first pass over a long thin image could be too large
    if width >= height and (resample is Image.Resampling.BILINEAR or grows):
        first, last, box = _reach(image.width, width, left, right)
        part = image.crop((first, 0, last, image.height))
        part = part.resize((size[0], part.height), resample, box=(box[0], 0, box[1], part.height))
        return part.resize((size[0], height), resample).crop((0, top, size[0], bottom))
    first, last, box = _reach(image.height, height, top, bottom)
    part = image.crop((0, first, image.width, last))
    part = part.resize((width, part.height), resample).crop((left, 0, right, part.height))
    return part.resize(size, resample, box=(0, box[0], size[0], box[1]))


def _reach(length: int, resized: int, start: int, stop: int) -> tuple[int, int, tuple[float, float]]:
    """What ``start:stop`` of a resized axis is made from: first and last sample, and the box among them.

    To be cut before the resize: far out on a long axis single precision is not enough for a box.
    """
    scale = length / resized
    beyond = math.ceil(2 * max(scale, 1)) + 1  # bicubic, the widest filter
    first, last = max(int(start * scale) - beyond, 0), min(math.ceil(stop * scale) + beyond, length)
    return first, last, (start * scale - first, min(stop * scale, length) - first)


def resized_shape(height: int, width: int, resize: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) after the resize: exact, or by the shorter side with the longer one rounded down."""
    if not isinstance(resize, int):
        return resize
    if width <= height:
        return int(resize * height / width), resize
    return resize, int(resize * width / height)


def _crop_span(length: int, crop: int) -> tuple[int, int, int]:
    """(start, stop, zeros before) of a centre crop along one axis, rounded as torchvision rounds."""
    if crop > length:
        return 0, length, (crop - length) // 2
    start = round((length - crop) / 2)
    return start, start + crop, 0


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    # Some Pillow versions open 16-bit PNG as 32-bit integers.
    if image.mode == "I" and (values.min() < 0 or values.max() > 65535):
        raise ImageError(ErrorCode.UNSUPPORTED, "32-bit integer pixels have no defined range")
    if _bits(image) == 12:
        return Image.fromarray(((values.astype(np.uint32) * 255 + 2047) // 4095).astype(np.uint8))
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _bits(image: Image.Image) -> int | None:
    """Bits of a sample as a TIFF file says; Pillow unpacks 12 of them into 16 unscaled."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE)
    return bits[0] if isinstance(bits, tuple) and bits else None
