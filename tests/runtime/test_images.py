from __future__ import annotations

import io
import os
import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sad_runtime import images
from sad_runtime.errors import ErrorCode, ImageError
from sad_runtime.images import decode, read_image
from sad_runtime.manifest import ExifOrientation

# Pillow's remarks on damaged metadata, which reading silences only where nobody else has set a filter.
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:PIL.TiffImagePlugin", "ignore::PIL.Image.DecompressionBombWarning"
)

PHOTO = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def encoded(format_: str, pixels: np.ndarray = PHOTO, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format_, **options)
    return buffer.getvalue()


def code_of(data: bytes) -> ErrorCode:
    with pytest.raises(ImageError) as caught:
        decode(data, exif=ExifOrientation.APPLY)
    assert "\n" not in caught.value.message
    return caught.value.code


def code_of_file(path: Path) -> ErrorCode:
    with pytest.raises(ImageError) as caught:
        read_image(path, exif=ExifOrientation.APPLY)
    return caught.value.code


@pytest.mark.parametrize("format_", images.FORMATS)
def test_every_format_is_read(format_: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(encoded(format_))
    image = read_image(tmp_path / "image", exif=ExifOrientation.APPLY)
    assert image.size == (80, 60)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    for name in ("absent", "dangling", "loop", "file/under", "null\0character"):
        assert code_of_file(tmp_path / name) is ErrorCode.NOT_FOUND


def test_what_is_no_regular_file_is_unreadable_and_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        assert code_of_file(path) is ErrorCode.UNREADABLE


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    assert code_of_file(tmp_path / "empty.png") is ErrorCode.EMPTY


@pytest.mark.parametrize(
    "data",
    [b"x", b"<svg></svg>", b"%PDF-1.7 ...", b"\0" * 1000, "text".encode("utf-16")],
    ids=["byte", "svg", "pdf", "zeros", "text"],
)
def test_what_is_no_image(data: bytes) -> None:
    assert code_of(data) is ErrorCode.NOT_AN_IMAGE


def test_postscript_is_never_interpreted() -> None:
    with io.BytesIO() as buffer:
        Image.fromarray(PHOTO).save(buffer, "EPS")
        assert code_of(buffer.getvalue()) is ErrorCode.NOT_AN_IMAGE


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "BMP", "GIF", "WEBP"])
def test_file_cut_in_the_middle_is_truncated(format_: str) -> None:
    data = encoded(format_)
    assert code_of(data[: len(data) // 2]) is ErrorCode.TRUNCATED


def test_jpeg_without_its_last_bytes_is_truncated() -> None:
    assert code_of(encoded("JPEG")[:-3]) is ErrorCode.TRUNCATED


@pytest.mark.parametrize("format_", images.FORMATS)
def test_file_cut_anywhere_is_a_code_or_an_image(format_: str) -> None:
    data = encoded(format_)
    for length in [*range(1, 64), *range(64, len(data), len(data) // 40)]:
        try:
            decode(data[:length], exif=ExifOrientation.APPLY)
        except ImageError as error:
            assert error.code in (ErrorCode.TRUNCATED, ErrorCode.CORRUPT, ErrorCode.NOT_AN_IMAGE)
            if length > 40:
                assert error.code is not ErrorCode.NOT_AN_IMAGE


@pytest.mark.parametrize("format_", images.FORMATS)
def test_damaged_file_is_a_code_or_an_image(format_: str) -> None:
    data = encoded(format_)
    rng = random.Random(7)
    refused = 0
    for _ in range(200):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(min(len(data), 600))] = rng.randrange(256)
        try:
            decode(bytes(damaged), exif=ExifOrientation.APPLY)
        except ImageError as error:
            refused += 1
            assert error.code is not ErrorCode.NOT_FOUND
    assert refused


def test_png_with_a_damaged_stream_is_corrupt() -> None:
    data = bytearray(encoded("PNG"))
    data[80:120] = bytes(40)
    assert code_of(bytes(data)) is ErrorCode.CORRUPT


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("size", [(10_000, 10_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bomb_is_too_large_and_is_not_decoded(size: tuple[int, int]) -> None:
    assert code_of(png_claiming(*size)) is ErrorCode.TOO_LARGE


def test_image_at_the_limit_is_only_truncated() -> None:
    assert code_of(png_claiming(images.MAX_PIXELS, 1)) is ErrorCode.TRUNCATED


def test_enormous_file_is_too_large(tmp_path: Path) -> None:
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(images.MAX_FILE_BYTES + 1)
    assert code_of_file(tmp_path / "sparse.png") is ErrorCode.TOO_LARGE


def with_orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded("PNG", exif=exif)


@pytest.mark.parametrize(
    ("value", "upright"),
    [
        (1, PHOTO),
        (2, PHOTO[:, ::-1]),
        (3, PHOTO[::-1, ::-1]),
        (4, PHOTO[::-1]),
        (5, PHOTO.transpose(1, 0, 2)),
        (6, np.rot90(PHOTO, -1)),
        (7, PHOTO[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(PHOTO)),
        (99, PHOTO),
    ],
)
def test_orientation_tag_is_applied_or_ignored(value: int, upright: np.ndarray) -> None:
    data = with_orientation(value)
    np.testing.assert_array_equal(np.asarray(decode(data, exif=ExifOrientation.APPLY)), upright)
    np.testing.assert_array_equal(np.asarray(decode(data, exif=ExifOrientation.IGNORE)), PHOTO)


def test_damaged_exif_is_no_orientation() -> None:
    data = encoded("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert decode(data, exif=ExifOrientation.APPLY).size == (80, 60)


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation_is_read(format_: str) -> None:
    frames = [Image.fromarray(np.full((9, 9, 3), level, np.uint8)) for level in (0, 250)]
    buffer = io.BytesIO()
    frames[0].save(buffer, format_, save_all=True, append_images=frames[1:])
    image = decode(buffer.getvalue(), exif=ExifOrientation.APPLY).convert("RGB")
    assert np.asarray(image).max() < 10


def test_many_threads_read_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG"))
    (tmp_path / "b.tif").write_bytes(encoded("TIFF", compression="tiff_lzw"))
    paths = [tmp_path / "a.jpg", tmp_path / "b.tif"] * 100
    with ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda path: np.asarray(read_image(path, exif=ExifOrientation.APPLY)), paths)
    arrays = list(read)
    np.testing.assert_array_equal(arrays[1], PHOTO)
    assert all(np.array_equal(array, arrays[i % 2]) for i, array in enumerate(arrays))
