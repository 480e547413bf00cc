"""Open an image file safely: limits first, few formats, and one stable code for whatever is wrong.

The bytes are read once, within a limit; only the formats below are ever tried, so that no interpreter of a
page description language runs on a stranger's file. Safe to call from several threads.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import warnings
from pathlib import Path

# The plugins are imported by name because Image.open(formats=...) looks only among those already imported.
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from .errors import ErrorCode, ImageError
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
"""Pillow's names of the formats that are read."""

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
"""File name endings by which a folder's images are found, in lower case."""

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

# Pillow warns of damaged metadata, which decides nothing here, and of large images, which are refused below.
# Warnings cannot be silenced thread by thread; appended, these yield to whatever the program has set.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin$", append=True)


def read_image(path: str | os.PathLike[str], *, exif: ExifOrientation) -> Image.Image:
    """Read and decode one image file, the first frame of an animation.

    Args:
        path: The file.
        exif: Whether the camera's orientation tag turns the image. A tag that cannot be read is none.

    Returns:
        The decoded image, in the file's colour mode.

    Raises:
        ImageError: It cannot be used; :class:`~sad_runtime.errors.ErrorCode` lists the codes.
    """
    data = _read(Path(path))
    return decode(data, exif=exif)


def decode(data: bytes, *, exif: ExifOrientation) -> Image.Image:
    """:func:`read_image` for bytes already in memory."""
    if not data:
        raise ImageError(ErrorCode.EMPTY, "the file is empty")
    try:
        # Opening reads the header, which is what the limit looks at; load() decodes.
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageError(ErrorCode.TOO_LARGE, f"{width}×{height} is more than {MAX_PIXELS} pixels")
        if not width or not height:
            raise ImageError(ErrorCode.CORRUPT, f"{width}×{height} holds no pixel")
        image.load()
    except ImageError:
        raise
    except UnidentifiedImageError:
        if data.startswith(_SIGNATURES):
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
    return _upright(image) if exif is ExifOrientation.APPLY else image


def _read(path: Path) -> bytes:
    """The file's bytes, or the error that says why not."""
    try:
        # Not blocking: opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(ErrorCode.UNREADABLE, "not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise ImageError(ErrorCode.TOO_LARGE, f"the file has more than {MAX_FILE_BYTES >> 20} MiB")
            # No more than the size said, also of a file that is still being written: read() allocates what it
            # is asked for before it reads.
            return file.read(status.st_size)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise ImageError(ErrorCode.NOT_FOUND, "no such file") from None
        raise ImageError(ErrorCode.UNREADABLE, f"cannot be read: {error.strerror}") from None
    except ValueError:  # a null character in the name
        raise ImageError(ErrorCode.NOT_FOUND, "no such file") from None


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; unturned if that cannot be read."""
    with contextlib.suppress(Exception):  # as above: the tag is a stranger's bytes too
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _damaged(data: bytes, error: Exception) -> ImageError:
    text = str(error)
    if "truncated" in text.lower():  # Pillow has no class for it
        return ImageError(ErrorCode.TRUNCATED, "the file ends before the image does")
    return ImageError(_cut_or_corrupt(data), f"cannot be decoded: {text or type(error).__name__}")


def _cut_or_corrupt(data: bytes) -> ErrorCode:
    """Tell a file that was cut off from one that is damaged, where the format states its length."""
    if data.startswith(b"RIFF") and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        return ErrorCode.TRUNCATED
    if data.startswith(b"\x89PNG") and len(data) < 33:  # signature and IHDR
        return ErrorCode.TRUNCATED
    return ErrorCode.CORRUPT
