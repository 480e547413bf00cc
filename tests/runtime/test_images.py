from __future__ import annotations

import io
import random
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sad_runtime import frames, images
from sad_runtime.errors import ErrorCode, ImageError
from sad_runtime.images import decode
from sad_runtime.manifest import Color, ExifOrientation
from sad_runtime.preprocessing import to_color
from tests.support.image_zoo import (
    PHOTO,
    bad_files,
    encoded,
    gif_of,
    good_files,
    jpeg_with_exif,
    png,
    tiff_of,
)

# Pillow's remarks on damaged metadata, which reading silences only where nobody else has set a filter.
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:PIL.TiffImagePlugin", "ignore::PIL.Image.DecompressionBombWarning"
)

GOOD, BAD = good_files(), bad_files()
SECONDS = 5.0
"""What no small file takes to be decoded or refused; far more than it does take, on a busy machine."""


def error_of(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, exif=ExifOrientation.APPLY)
    assert "\n" not in caught.value.message
    return caught.value


def code_of(data: bytes) -> ErrorCode:
    return error_of(data).code


@pytest.mark.parametrize("name", GOOD)
def test_every_good_file_is_read(name: str) -> None:
    file = GOOD[name]
    decoded = decode(file.data, exif=ExifOrientation.APPLY)
    assert decoded.image.size == file.size
    assert decoded.frames == file.frames
    if file.first_pixel is not None:
        pixel = to_color(decoded.image, Color.RGB).getpixel((0, 0))
        assert np.abs(np.subtract(pixel, file.first_pixel)).max() <= 1


@pytest.mark.parametrize("name", BAD)
def test_every_bad_file_has_its_code(name: str) -> None:
    assert code_of(BAD[name].data) is BAD[name].code


@pytest.mark.parametrize("name", BAD)
def test_codes_do_not_depend_on_warning_filters(name: str) -> None:
    for action in ("error", "ignore"):
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            assert code_of(BAD[name].data) is BAD[name].code


@pytest.mark.parametrize(
    "name", ["4 exapixels", "jpeg of 4 gigapixels", "compressed text", "compressed profile"]
)
def test_a_bomb_is_refused_before_it_is_unpacked(name: str) -> None:
    started = time.process_time()
    code_of(BAD[name].data)
    assert time.process_time() - started < 0.2


def test_an_image_at_the_pixel_limit_is_only_truncated() -> None:
    assert code_of(png(images.MAX_PIXELS, 1, b"")) is ErrorCode.TRUNCATED


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
def test_some_damaged_files_are_refused(format_: str) -> None:
    data = encoded(format_)
    rng = random.Random(7)
    refused = 0
    for _ in range(100):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(min(len(data), 600))] = rng.randrange(256)
        try:
            decode(bytes(damaged), exif=ExifOrientation.APPLY)
        except ImageError:
            refused += 1
    assert refused


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(GOOD)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=0, max_size=6)), max_size=6),
    cut=st.floats(0, 1) | st.none(),
)
def test_mutations_of_good_files_are_an_image_or_an_image_error_in_bounded_time(
    name: str, changes: list[tuple[float, bytes]], cut: float | None
) -> None:
    data = bytearray(GOOD[name].data)
    for where, new in changes:
        # Closer to the beginning more often: that is where headers are.
        start = int(where**3 * len(data))
        data[start : start + len(new)] = new
    if cut is not None:
        del data[int(cut * len(data)) :]
    started = time.process_time()
    try:
        decoded = decode(bytes(data), exif=ExifOrientation.APPLY)
        to_color(decoded.image, Color.RGB)
        assert decoded.frames >= 1
    except ImageError as error:
        assert error.code not in (ErrorCode.NOT_FOUND, ErrorCode.UNREADABLE)
    assert time.process_time() - started < SECONDS


def test_frames_are_counted_as_pillow_counts_them() -> None:
    for name, file in GOOD.items():
        with Image.open(io.BytesIO(file.data)) as image:
            if image.format != "MPO":
                assert decode(file.data, exif=ExifOrientation.IGNORE).frames == getattr(
                    image, "n_frames", 1
                ), name


@pytest.mark.parametrize(("make", "exact"), [(gif_of, 100_000), (tiff_of, 100_000)], ids=["gif", "tiff"])
def test_a_hundred_thousand_frames_are_counted_without_decoding_them(make, exact: int) -> None:
    data = make(exact)
    started = time.process_time()
    assert decode(data, exif=ExifOrientation.APPLY).frames == exact
    assert time.process_time() - started < SECONDS


@pytest.mark.parametrize(
    "data",
    [
        gif_of(2 * frames.MAX_BLOCKS),
        gif_of(1, in_each=b"\x02" + b"\x01\x00" * frames.MAX_BLOCKS + b"\x01" * (8 * frames.MAX_BLOCKS)),
        tiff_of(2 * frames.MAX_BLOCKS),
    ],
    ids=["gif frames", "gif blocks", "tiff"],
)
def test_counting_stops_in_a_file_of_endless_blocks(data: bytes) -> None:
    started = time.process_time()
    assert 1 <= frames.count_frames(data) <= frames.MAX_BLOCKS
    assert time.process_time() - started < SECONDS


ORIENTATIONS = [
    (1, PHOTO),
    (2, PHOTO[:, ::-1]),
    (3, PHOTO[::-1, ::-1]),
    (4, PHOTO[::-1]),
    (5, PHOTO.transpose(1, 0, 2)),
    (6, np.rot90(PHOTO, -1)),
    (7, PHOTO[::-1, ::-1].transpose(1, 0, 2)),
    (8, np.rot90(PHOTO)),
    (99, PHOTO),
]


def orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


@pytest.mark.parametrize(("value", "upright"), ORIENTATIONS)
def test_orientation_tag_is_applied_or_ignored(value: int, upright: np.ndarray) -> None:
    data = encoded("PNG", exif=orientation(value))
    applied, ignored = (decode(data, exif=policy).image for policy in ExifOrientation)
    np.testing.assert_array_equal(np.asarray(applied), upright)
    np.testing.assert_array_equal(np.asarray(ignored), PHOTO)


def fast_size(data: bytes, needed: tuple[int, int], exif: ExifOrientation) -> tuple[int, int]:
    """(height, width) that a JPEG is decoded to for a resize to ``needed``."""
    image = decode(data, exif=exif, fast=lambda height, width: needed).image
    return image.height, image.width


def test_fast_decoding_halves_as_long_as_the_resize_needs_no_more() -> None:
    data = encoded("JPEG", np.zeros((600, 801, 3), np.uint8))
    for needed, decoded in [
        ((600, 800), (600, 801)),
        ((301, 200), (600, 801)),
        ((300, 400), (300, 401)),
        ((150, 200), (150, 201)),
        ((75, 100), (75, 101)),
        ((1, 1), (75, 101)),
        ((900, 900), (600, 801)),
    ]:
        assert fast_size(data, needed, ExifOrientation.APPLY) == decoded


def test_fast_decoding_knows_that_the_image_lies_on_its_side() -> None:
    data = jpeg_with_exif(orientation(6), np.zeros((600, 800, 3), np.uint8))
    # Upright, it is 800 high: the resize to 390 × 310 needs 310 × 390 of the file.
    assert fast_size(data, (390, 290), ExifOrientation.APPLY) == (400, 300)
    assert fast_size(data, (290, 390), ExifOrientation.APPLY) == (800, 600)
    assert fast_size(data, (290, 390), ExifOrientation.IGNORE) == (300, 400)


@pytest.mark.parametrize("name", [name for name in GOOD if not GOOD[name].data.startswith(b"\xff\xd8")])
def test_fast_decoding_changes_nothing_but_jpeg(name: str) -> None:
    data = GOOD[name].data
    fast = decode(data, exif=ExifOrientation.APPLY, fast=lambda height, width: (1, 1)).image
    assert fast.tobytes() == decode(data, exif=ExifOrientation.APPLY).image.tobytes()


def test_many_threads_decode_the_same_file() -> None:
    files = [encoded("JPEG"), encoded("TIFF", compression="tiff_lzw")]
    with ThreadPoolExecutor(8) as pool:
        decoded = pool.map(lambda data: decode(data, exif=ExifOrientation.APPLY), files * 100)
    arrays = [np.asarray(one.image) for one in decoded]
    np.testing.assert_array_equal(arrays[1], PHOTO)
    assert all(np.array_equal(array, arrays[i % 2]) for i, array in enumerate(arrays))
