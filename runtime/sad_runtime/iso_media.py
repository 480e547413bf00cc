"""HEIC, HEIF and AVIF: pictures in ISO base media files, which Pillow reads with help or in newer versions.

HEIC and HEIF need the extra ``heic`` (pillow-heif); AVIF needs a Pillow that was built with it, as its wheels
from 11.3 on are. What an image is, its first box says (ISO 14496-12, section 4.3), so that a file that cannot
be read here says what it lacks.
"""

from __future__ import annotations

import functools
import importlib.util
import struct
import threading

from PIL import features

from .errors import ErrorCode, ImageError
from .extras import require

EXTENSIONS = frozenset({".heic", ".heif", ".avif"})
"""Their file name extensions, in lower case."""

_HEIC = frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"))
_AVIF = frozenset((b"avif", b"avis"))
_ANY = frozenset((b"mif1", b"msf1"))
_MOST_BRANDS = 64
_LOCK = threading.Lock()


def format_of(data: bytes) -> str | None:
    """Pillow's name of the format, ``HEIF`` or ``AVIF``; None for any other file."""
    if data[4:8] != b"ftyp":
        return None
    size = min(int.from_bytes(data[:4], "big"), len(data), 16 + 4 * _MOST_BRANDS)
    brands = {data[8:12], *(data[i : i + 4] for i in range(16, size - 3, 4))}
    if data[8:12] in _AVIF or (data[8:12] in _ANY and brands & _AVIF):
        return "AVIF"
    return "HEIF" if data[8:12] in _HEIC | _ANY else None


def make_readable(format_: str) -> None:
    """Teach Pillow a format.

    Args:
        format_: What :func:`format_of` said.

    Raises:
        ImageError: What reads it is not installed.
    """
    if format_ == "AVIF" and not _reads_avif():
        raise ImageError(ErrorCode.UNSUPPORTED, "AVIF needs Pillow 11.3 or newer, built with it")
    if format_ == "HEIF":
        if importlib.util.find_spec("pillow_heif") is None:
            raise ImageError(
                ErrorCode.UNSUPPORTED, "HEIC and HEIF need the extra heic: pip install 'sad-deploy[heic]'"
            )
        with _LOCK:
            _register_heif()


def is_cut(data: bytes) -> bool:
    """Whether a box at the top says that it is longer than the file is."""
    position = 0
    while position + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, position)
        if size == 1 and position + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, position + 8)
        if size < 8:  # 0: to the end of the file
            return False
        position += size
    return position != len(data)


@functools.cache
def _reads_avif() -> bool:
    if not features.check("avif"):
        return False
    from PIL import AvifImagePlugin  # noqa: F401 - Image.open looks among those that were imported

    return True


@functools.cache
def _register_heif() -> None:
    require("pillow_heif", extra="heic", need="reading HEIC").register_heif_opener(thumbnails=False)
