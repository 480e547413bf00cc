"""Open an image file safely: limits first, few formats, and one stable code for whatever is wrong.

Only the formats below are ever tried, so that no interpreter of a page description language runs on a
stranger's file. Safe to call from several threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator

# The plugins are imported by name because Image.open(formats=...) looks only among those already imported.
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from . import iso_media
from .errors import ErrorCode, ImageError
from .frames import count_frames
from .manifest import ExifOrientation

FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        BmpImagePlugin.BmpImageFile,
        WebPImagePlugin.WebPImageFile,
        TiffImagePlugin.TiffImageFile,
        GifImagePlugin.GifImageFile,
    )
)
"""Pillow's names of the formats that are always read; :mod:`.iso_media` has those that may be."""

EXTENSIONS = (
    frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}) | iso_media.EXTENSIONS
)
"""File name extensions by which images are found in folders and archives, in lower case."""

MAX_PIXELS = 89_478_485
"""Most pixels an image may have: Pillow's own limit, a quarter of a gibibyte in RGB."""

MAX_FILE_BYTES = 1 << 29
"""Largest file that is read: 512 MiB."""

_SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"BM",
    b"RIFF",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"GIF8",
)

NeededShape = Callable[[int, int], tuple[int, int]]
"""(height, width) of an image → (height, width) that it is resized to."""

# Pillow's limits on what a PNG's compressed texts and profiles unpack to: 1 MiB each, 64 MiB together.
_TEXT_BOMB = re.compile("MAX_TEXT_CHUNK|MAX_TEXT_MEMORY")

# Orientations under which height and width change places.
_LYING = (5, 6, 7, 8)

# Pillow's images are not for two threads at once, and one that is given twice would be loaded by both.
_LOADING = threading.Lock()

# Pillow warns of damaged metadata, which decides nothing here, and of large images, which are refused below.
# Warnings cannot be silenced thread by thread; appended, these yield to whatever the program has set.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin$", append=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Decoded:
    """An image file, decoded.

    Attributes:
        image: The first frame, in the file's colour mode, upright if that was asked for.
        frames: Pictures in the file; see :func:`~sad_runtime.frames.count_frames`.
    """

    image: Image.Image
    frames: int


def decode(
    data: bytes, *, exif: ExifOrientation, fast: NeededShape | None = None, max_pixels: int = MAX_PIXELS
) -> Decoded:
    """Decode one image, the first frame of an animation, the first page of a document.

    Args:
        data: The file.
        exif: Whether the camera's orientation tag turns the image. A tag that cannot be read is none.
        fast: (height, width) of the upright image → (height, width) that it will be resized to. A JPEG is
            then decoded at a half, a quarter or an eighth, but never below that: less work, and pixels that
            differ.
        max_pixels: Most pixels that are decoded; the header says how many there are.

    Raises:
        ImageError: It cannot be used; :class:`~sad_runtime.errors.ErrorCode` lists the codes.
    """
    if not data:
        raise ImageError(ErrorCode.EMPTY, "the file is empty")
    media = iso_media.format_of(data)
    if media is not None:
        iso_media.make_readable(media)
    with _refused(data):
        # Opening reads the header, which is what the limit looks at; load() decodes.
        image = Image.open(io.BytesIO(data), formats=FORMATS if media is None else (media,))
        check_size(image.width, image.height, max_pixels)
        if fast is not None:
            image.draft(None, _needed_size(image, exif, fast))
        image.load()
    frames = count_frames(data) if media is None else int(getattr(image, "n_frames", 1))
    return Decoded(_upright(image) if exif is ExifOrientation.APPLY else image, frames)


def decode_opened(image: Image.Image, *, exif: ExifOrientation, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image of Pillow's, decoded and upright as one from :func:`decode` is; what was given stays as it is.

    Args:
        image: The frame at which it stands is taken. Whoever opened it chose the formats.
        exif: Whether the orientation tag that it carries turns it.
        max_pixels: Most pixels.

    Raises:
        ImageError: It cannot be decoded, or has too many pixels.
    """
    with _refused():
        check_size(image.width, image.height, max_pixels)
        with _LOADING:
            image.load()
    if exif is ExifOrientation.APPLY and _orientation(image) not in (None, 1):
        return _upright(image.copy())
    return image


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image of no pixel or of too many.

    Raises:
        ImageError: ``too-large`` or ``corrupt``.
    """
    if width * height > max_pixels:
        raise ImageError(ErrorCode.TOO_LARGE, f"{width}×{height} is more than {max_pixels} pixels")
    if not width or not height:
        raise ImageError(ErrorCode.CORRUPT, f"{width}×{height} holds no pixel")


@contextlib.contextmanager
def _refused(data: bytes = b"") -> Iterator[None]:
    """Whatever opening or decoding raises, as the image's error; ``data`` is the file, if it is at hand."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        if data.startswith(_SIGNATURES) or iso_media.format_of(data) is not None:
            raise ImageError(
                _cut_or_corrupt(data), "the file starts as an image but cannot be decoded"
            ) from None
        raise ImageError(
            ErrorCode.NOT_AN_IMAGE, f"not an image of a known format ({', '.join(FORMATS)})"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(ErrorCode.TOO_LARGE, f"more than {MAX_PIXELS} pixels") from error
    except MemoryError:
        raise ImageError(ErrorCode.TOO_LARGE, "not enough memory to decode it") from None
    except Exception as error:  # whatever a decoder raises on a stranger's bytes, the bytes are at fault
        raise _damaged(data, error) from error


def _needed_size(image: Image.Image, exif: ExifOrientation, needed: NeededShape) -> tuple[int, int]:
    """(width, height) that the image, as it lies in the file, must have at least."""
    width, height = image.size
    if exif is ExifOrientation.APPLY and _orientation(image) in _LYING:
        width, height = needed(width, height)
    else:
        height, width = needed(height, width)
    return width, height


def _orientation(image: Image.Image) -> int | None:
    """The orientation tag, which may be anything; ``None`` if it cannot be read."""
    with contextlib.suppress(Exception):  # the tag is a stranger's bytes too
        value = image.getexif().get(ExifTags.Base.Orientation)
        return value if isinstance(value, int) else None
    return None


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; unturned if that cannot be read."""
    with contextlib.suppress(Exception):  # as above
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _damaged(data: bytes, error: Exception) -> ImageError:
    text = " ".join(str(error).split())
    # Pillow has no classes for these.
    if "truncated" in text.lower():
        return ImageError(ErrorCode.TRUNCATED, "the file ends before the image does")
    if isinstance(error, ValueError) and _TEXT_BOMB.search(text):
        return ImageError(ErrorCode.TOO_LARGE, "its text or colour profile unpacks to more than is read")
    return ImageError(_cut_or_corrupt(data), f"cannot be decoded: {text or type(error).__name__}")


def _cut_or_corrupt(data: bytes) -> ErrorCode:
    """Tell a file that was cut off from one that is damaged, where the format states its length."""
    if data.startswith(b"RIFF") and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        return ErrorCode.TRUNCATED
    if iso_media.format_of(data) is not None and iso_media.is_cut(data):
        return ErrorCode.TRUNCATED
    if data.startswith(b"\x89PNG") and len(data) < 33:  # signature and IHDR
        return ErrorCode.TRUNCATED
    return ErrorCode.CORRUPT
