"""An image as a program holds it, a path, bytes, a file, Pillow's, an array → (C, H, W) float32 in [0, 1].

What is not yet the graph's input is prepared as ``infer`` prepares files, so the same image gives the same
tensor whichever way it comes. Only an array of floats is taken for the input itself.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeAlias, TypeGuard, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from .devices import available_cores
from .errors import BadImagesError, ErrorCode, ImageError, UserError
from .images import MAX_FILE_BYTES, MAX_PIXELS, check_size, decode_opened
from .manifest import Preprocessing
from .preprocessing import Loaded, load, load_bytes, to_array
from .sources import FileItem, Item, Stamp, read_file
from .sources.items import too_large

_CHUNK = 1 << 20
_HINT = "give a path, bytes, a binary file object, a PIL image, or an array"


@runtime_checkable
class Readable(Protocol):
    """A file object, opened in binary mode."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""
        ...


GivenImage: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | Readable | Image.Image | npt.NDArray[Any] | Item
)
"""One image. ``str`` is a path; bytes are an image file's, and so is what a file object gives from where it
stands. An array of uint8 is a decoded picture of any size: (H, W), or (H, W, 1), (H, W, 3) or (H, W, 4),
channels last. One of floats is (C, H, W) in [0, 1], the graph's input itself. An item is one of
:func:`~sad_runtime.sources.open_sources`."""


def preprocess(
    image: GivenImage, preprocessing: Preprocessing, *, fast: bool = False, max_pixels: int = MAX_PIXELS
) -> npt.NDArray[np.float32]:
    """Turn one image into the graph's input, exactly as ``infer`` does.

    Safe to call from several threads, with images of their own.

    Args:
        image: See :data:`GivenImage`. A file object is read to its end and not closed.
        preprocessing: What the bundle says: ``classifier.manifest.preprocessing``.
        fast: Decode a JPEG at a lower resolution where that suffices; pixels differ a little.
        max_pixels: Most pixels that an image may have.

    Returns:
        (C, H, W) float32 in [0, 1]: colour, resize and crop as the bundle says. An array of floats is
        checked and returned as it is.

    Raises:
        ImageError: The image cannot be used; its ``code`` is that of an error row.
        UserError: It is no image at all, for example a file opened as text.
    """
    return load_given(image, preprocessing, fast=fast, max_pixels=max_pixels).pixels


def load_given(
    image: GivenImage, preprocessing: Preprocessing, *, fast: bool = False, max_pixels: int = MAX_PIXELS
) -> Loaded:
    """:func:`preprocess`, with the number of frames of an image file."""
    if isinstance(image, np.ndarray):
        return Loaded(_from_array(image, preprocessing, max_pixels), 1)
    if isinstance(image, Image.Image):
        upright = decode_opened(image, exif=preprocessing.exif_orientation, max_pixels=max_pixels)
        return Loaded(to_array(upright, preprocessing), 1)
    return load_bytes(_file_of(image), preprocessing, fast=fast, max_pixels=max_pixels)


def is_one_image(images: object) -> TypeGuard[GivenImage]:
    """Whether something is one image and not several; an array of four axes is several."""
    if isinstance(images, np.ndarray):
        return images.ndim != 4
    files = (str, os.PathLike, bytes, bytearray, memoryview, Readable)
    return isinstance(images, (*files, Image.Image))


def several(images: object) -> Sequence[GivenImage]:
    """The images that a program holds, of an iterable or an array (N, H, W, C) of uint8.

    Raises:
        UserError: It is none.
    """
    if isinstance(images, np.ndarray) and (images.dtype != np.uint8 or images.shape[-1] not in (1, 3, 4)):
        raise UserError(
            f"images must be (N, H, W, C) of uint8 with C 1, 3 or 4, got {images.shape} of {images.dtype}"
        )
    if not isinstance(images, Iterable):
        raise UserError(_no_image(images), hint=f"{_HINT}; or several of them")
    return images if isinstance(images, (list, tuple)) else list(images)


def load_all(images: Sequence[GivenImage], preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """Several images as one batch, decoded side by side.

    Args:
        images: N of them.
        preprocessing: What the bundle says.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        BadImagesError: Some cannot be used; all of them are named, by their places.
        UserError: Something is no image at all.
    """
    batch = np.empty((len(images), *preprocessing.shape), np.float32)
    failures: dict[int, ImageError] = {}

    def put(i: int) -> None:
        try:
            batch[i] = preprocess(images[i], preprocessing)
        except ImageError as error:
            failures[i] = error
        except UserError as error:
            raise UserError(f"images[{i}]: {error.message}", hint=error.hint) from None

    workers = min(len(images), available_cores())
    if workers > 1 and not all(isinstance(image, np.ndarray) and image.dtype != np.uint8 for image in images):
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
            for _ in pool.map(put, range(len(images))):
                pass
    else:
        for i in range(len(images)):
            put(i)
    if failures:
        raise BadImagesError(dict(sorted(failures.items())))
    return batch


@dataclasses.dataclass(frozen=True, slots=True)
class GivenItem:
    """One image of a program among those of a stream; see :class:`~sad_runtime.sources.Item`.

    Attributes:
        name: Of a file object its own, else ``images[i]`` for the i-th of the stream.
        image: It.
    """

    name: str
    image: GivenImage

    @classmethod
    def of(cls, image: GivenImage, place: int) -> GivenItem:
        """The image at a place of the stream, counted from 0."""
        name = None if isinstance(image, (np.ndarray, Image.Image)) else getattr(image, "name", None)
        return cls(name if isinstance(name, str) and name else f"images[{place}]", image)

    def read(self) -> bytes:
        """Its file's bytes.

        Raises:
            UserError: It is decoded already, so there is no file.
        """
        if isinstance(self.image, (np.ndarray, Image.Image)):
            raise UserError(f"{self.name} is a decoded picture, so it has no file")
        return _file_of(self.image)

    def stamp(self) -> Stamp | None:
        """``None``: nothing that lies on a disk."""
        return None


def as_item(image: GivenImage, place: int) -> Item:
    """What a stream holds at a place, counted from 0, as an item.

    Raises:
        UserError: It is neither an item nor an image.
    """
    if isinstance(image, (str, os.PathLike)):
        return FileItem(os.fspath(image))
    if hasattr(image, "stamp"):
        return cast(Item, image)
    if is_one_image(image):
        return GivenItem.of(image, place)
    raise UserError(f"images[{place}]: {_no_image(image)}", hint=_HINT)


def load_item(
    item: Item, preprocessing: Preprocessing, *, fast: bool = False, max_pixels: int = MAX_PIXELS
) -> Loaded:
    """Read an item of a stream as the graph's input.

    Raises:
        ImageError: The image cannot be used.
        UserError: It is no image at all.
    """
    if not isinstance(item, GivenItem):
        return load(item, preprocessing, fast=fast, max_pixels=max_pixels)
    try:
        return load_given(item.image, preprocessing, fast=fast, max_pixels=max_pixels)
    except ImageError:
        raise
    except UserError as error:
        raise UserError(f"{item.name}: {error.message}", hint=error.hint) from None


def _no_image(image: object) -> str:
    if isinstance(image, np.ndarray):
        return f"an array of shape {image.shape} is not one image"
    return f"{type(image).__name__} is no image"


def _file_of(image: object) -> bytes:
    """The bytes of an image file, however it is given."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        size = image.nbytes if isinstance(image, memoryview) else len(image)
        if size > MAX_FILE_BYTES:
            raise too_large()
        return image if isinstance(image, bytes) else bytes(image)
    if isinstance(image, (str, os.PathLike)):
        return read_file(image)
    if hasattr(image, "stamp"):
        return cast(Item, image).read()
    if isinstance(image, Readable):
        return _read(image)
    raise UserError(_no_image(image), hint=_HINT)


def _read(file: Readable) -> bytes:
    """What a file object gives, piece by piece: read() allocates what it is asked for."""
    pieces: list[bytes] = []
    size = 0
    while True:
        try:
            piece: object = file.read(_CHUNK)
        except Exception as error:  # of archives, sockets and closed files, each has its own
            text = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(ErrorCode.UNREADABLE, f"cannot be read: {text}") from error
        if isinstance(piece, str):
            raise UserError("the file is opened as text", hint='open it with mode "rb"')
        if piece is None:
            raise ImageError(ErrorCode.UNREADABLE, "cannot be read: the file does not wait for its bytes")
        if not isinstance(piece, (bytes, bytearray, memoryview)):
            raise UserError(f"its read() returns {type(piece).__name__}, not bytes", hint=_HINT)
        if not piece:
            return b"".join(pieces)
        size += len(piece)
        if size > MAX_FILE_BYTES:
            raise too_large()
        pieces.append(bytes(piece))


def _from_array(
    image: npt.NDArray[Any], preprocessing: Preprocessing, max_pixels: int
) -> npt.NDArray[np.float32]:
    if image.dtype == np.uint8:
        return to_array(_picture(image, max_pixels), preprocessing)
    shape = preprocessing.shape
    if image.dtype.kind != "f" or image.shape != shape:
        raise ImageError(
            ErrorCode.UNSUPPORTED,
            f"an array must be {shape} of floats in [0, 1], or (H, W, C) of uint8; got {image.shape} of "
            f"{image.dtype}",
        )
    pixels = as_float32(image)
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN fails both comparisons
        finite = bool(np.isfinite(pixels).all())
        found = f"{pixels.min():g} to {pixels.max():g}" if finite else "a value that is not finite"
        raise ImageError(ErrorCode.UNSUPPORTED, f"an array of floats must be in [0, 1], got {found}")
    return pixels


def as_float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Floats as contiguous float32, themselves if they are; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32)


def _picture(image: npt.NDArray[np.uint8], max_pixels: int) -> Image.Image:
    """An array of uint8, channels last, as a decoded image."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
        channels_first = image.ndim == 3 and image.shape[0] in (1, 3, 4)
        hint = ", as image.transpose(1, 2, 0) is" if channels_first else ""
        raise ImageError(
            ErrorCode.UNSUPPORTED,
            f"an array of uint8 must be (H, W) or (H, W, C) with C 1, 3 or 4{hint}; got {image.shape}",
        )
    check_size(image.shape[1], image.shape[0], max_pixels)
    return Image.fromarray(np.ascontiguousarray(image))
