"""HEIC and AVIF: read where something reads them, and a row that says what is missing where nothing does."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from sad_runtime import iso_media
from sad_runtime.errors import ErrorCode, ImageError
from sad_runtime.images import EXTENSIONS, decode
from sad_runtime.manifest import ExifOrientation
from sad_runtime.sources import open_sources
from tests.support.image_zoo import PHOTO, flat

ORIENTATION = 0x0112
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
needs_heif = pytest.mark.skipif(
    importlib.util.find_spec("pillow_heif") is None, reason="pillow-heif, the extra heic, is not installed"
)
FORMATS = [pytest.param("AVIF", marks=needs_avif), pytest.param("HEIF", marks=needs_heif)]


def encoded(format_: str, image: Image.Image | None = None, **options: Any) -> bytes:
    iso_media.make_readable(format_)
    buffer = io.BytesIO()
    (image or Image.fromarray(PHOTO)).save(buffer, format_, **options)
    return buffer.getvalue()


def read(data: bytes, exif: ExifOrientation = ExifOrientation.APPLY) -> Any:
    return decode(data, exif=exif)


def error_of(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read(data)
    assert "\n" not in caught.value.message
    return caught.value


def box(kind: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + kind + content


def header(*brands: bytes) -> bytes:
    return box(b"ftyp", brands[0] + b"\0\0\0\0" + b"".join(brands[1:]))


@pytest.mark.parametrize(
    ("brands", "format_"),
    [
        ((b"heic", b"mif1"), "HEIF"),
        ((b"mif1", b"heic"), "HEIF"),
        ((b"avif", b"mif1"), "AVIF"),
        ((b"mif1", b"miaf", b"avif"), "AVIF"),
        ((b"isom", b"mp42"), None),
        ((b"qt  ",), None),
    ],
)
def test_the_first_box_says_what_it_is(brands: tuple[bytes, ...], format_: str | None) -> None:
    assert iso_media.format_of(header(*brands)) == format_


def test_a_film_is_no_image() -> None:
    assert error_of(header(b"isom", b"mp42") + box(b"mdat", bytes(100))).code is ErrorCode.NOT_AN_IMAGE


@pytest.mark.parametrize("format_", FORMATS)
def test_it_is_read(format_: str) -> None:
    decoded = read(encoded(format_, flat(120)[0].resize((64, 48))))
    assert (decoded.image.size, decoded.frames) == ((64, 48), 1)
    assert np.abs(np.asarray(decoded.image.convert("RGB")).astype(int) - 120).max() <= 2


@needs_avif
def test_the_cameras_tag_turns_an_avif_if_it_may() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encoded("AVIF", exif=exif)
    assert read(data).image.size == (60, 80)
    assert read(data, ExifOrientation.IGNORE).image.size == (80, 60)


@needs_heif
def test_a_heic_is_turned_by_its_container_and_not_twice() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encoded("HEIF", exif=exif.tobytes())
    assert {read(data, each).image.size for each in ExifOrientation} == {(60, 80)}


@needs_avif
def test_the_first_frame_of_an_animated_avif_is_taken_and_the_others_are_counted() -> None:
    first, *others = (image.resize((32, 32)) for image in flat(0, 100, 250))
    decoded = read(encoded("AVIF", first, save_all=True, append_images=others))
    assert decoded.frames == 3
    assert np.asarray(decoded.image.convert("RGB")).max() <= 3


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("part", [0.01, 0.1, 0.5, 0.99])
def test_a_cut_file_is_truncated(format_: str, part: float) -> None:
    data = encoded(format_)
    assert error_of(data[: max(20, int(part * len(data)))]).code is ErrorCode.TRUNCATED


@pytest.mark.parametrize("format_", FORMATS)
def test_a_damaged_header_is_corrupt(format_: str) -> None:
    data = bytearray(encoded(format_))
    data[60:90] = b"\xff" * 30
    assert error_of(bytes(data)).code is ErrorCode.CORRUPT


def test_without_the_extra_a_heic_says_which_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    error = error_of(header(b"heic", b"mif1") + bytes(100))
    assert error.code is ErrorCode.UNSUPPORTED
    assert "pip install 'sad-deploy[heic]'" in error.message


def test_without_avif_in_pillow_it_says_which_one_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iso_media, "_reads_avif", lambda: False)
    error = error_of(header(b"avif", b"mif1") + bytes(100))
    assert error.code is ErrorCode.UNSUPPORTED
    assert "Pillow 11.3" in error.message


def test_folders_are_searched_for_them(tmp_path: Path) -> None:
    assert iso_media.EXTENSIONS < EXTENSIONS
    for name in ("a.HEIC", "b.heif", "c.avif", "d.mp4"):
        (tmp_path / name).write_bytes(b"x")
    with open_sources([tmp_path]) as sources:
        assert [Path(item.name).name for item in sources] == ["a.HEIC", "b.heif", "c.avif"]
