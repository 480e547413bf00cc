from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from sad_runtime.errors import ErrorCode, ImageError
from sad_runtime.manifest import Color, Interpolation, Preprocessing
from sad_runtime.preprocessing import load, nearest_samples, resized_shape, to_array, to_color
from sad_runtime.sources import FileItem

ONE_LEVEL = 1 / 255 + 1e-6


def picture(height: int, width: int, channels: int = 3, *, seed: int = 0, levels: int = 256) -> Image.Image:
    """Noise of some evenly spaced levels: the hardest to resize alike."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, levels, (height, width, channels), dtype=np.uint8) * np.uint8(
        255 // (levels - 1)
    )
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def torchvision_reference(image: Image.Image, p: Preprocessing) -> np.ndarray:
    steps = [
        transforms.Resize(p.resize, interpolation=InterpolationMode(p.interpolation.value)),
        transforms.CenterCrop(p.crop),
        transforms.ToTensor(),
    ]
    return transforms.Compose(steps)(image).numpy()


SIZES = [
    (375, 500),
    (500, 375),
    (33, 47),
    (1, 1),
    (7, 300),
    (300, 7),
    (64, 64),
    (31, 32),
    (225, 224),
    (1, 90),
]


@pytest.mark.parametrize("interpolation", list(Interpolation))
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize(
    ("resize", "crop"),
    [
        (64, (56, 56)),
        (33, (32, 31)),
        (20, (32, 40)),  # the crop is larger
        (256, (224, 224)),
        ((40, 70), (40, 70)),
        ((41, 23), (30, 31)),
    ],
    ids=str,
)
def test_equals_torchvision_to_one_level(
    interpolation: Interpolation,
    size: tuple[int, int],
    resize: int | tuple[int, int],
    crop: tuple[int, int],
) -> None:
    p = Preprocessing(Color.RGB, resize, crop, interpolation)
    image = picture(*size)
    ours, theirs = to_array(image, p), torchvision_reference(image, p)
    assert ours.shape == theirs.shape == p.shape
    assert ours.dtype == np.float32
    assert ours.flags.c_contiguous
    if interpolation is Interpolation.NEAREST:
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert np.abs(ours - theirs).max() <= ONE_LEVEL
        assert np.abs(ours - theirs).mean() <= 0.05 / 255


@pytest.mark.parametrize("interpolation", list(Interpolation))
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (2, 5001), (1023, 17), (3, 901)], ids=str)
def test_long_thin_image_equals_torchvision_to_one_level(
    interpolation: Interpolation, size: tuple[int, int]
) -> None:
    p = Preprocessing(Color.GRAY, 64, (56, 72), interpolation)
    image = picture(*size, channels=1)
    assert np.abs(to_array(image, p) - torchvision_reference(image, p)).max() <= ONE_LEVEL


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    resize=st.integers(1, 90) | st.tuples(st.integers(1, 60), st.integers(1, 60)),
    crop=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    interpolation=st.sampled_from(Interpolation),
    color=st.sampled_from(Color),
    levels=st.sampled_from([2, 256]),
)
def test_equals_torchvision_for_any_sizes(
    height: int,
    width: int,
    resize: int | tuple[int, int],
    crop: tuple[int, int],
    interpolation: Interpolation,
    color: Color,
    levels: int,
) -> None:
    p = Preprocessing(color, resize, crop, interpolation)
    image = picture(height, width, color.channels, levels=levels)
    difference = np.abs(to_array(image, p) - torchvision_reference(image, p))
    assert difference.max() <= ONE_LEVEL


def test_image_of_the_right_size_is_not_touched() -> None:
    image = picture(32, 32)
    array = to_array(image, Preprocessing(Color.RGB, 32, (32, 32)))
    np.testing.assert_array_equal(array, np.asarray(image).transpose(2, 0, 1) / np.float32(255))


def test_very_long_image_is_resized_without_the_whole_being_made() -> None:
    ramp = np.tile(np.linspace(0, 255, 60_000).astype(np.uint8), (2, 1))
    p = Preprocessing(Color.GRAY, 256, (224, 224))  # the whole would be 256 × 7,680,000
    array = to_array(Image.fromarray(ramp), p)
    assert np.abs(array - 0.5).max() < 0.01
    steps = np.asarray(Image.fromarray(ramp[:, 29_990:30_010]).resize((2560, 256), Image.Resampling.BILINEAR))
    assert np.abs(array * 255 - steps[16:240, 1168:1392]).max() <= 1


def test_nearest_resize_takes_the_pixels_that_pillow_takes_however_long_the_image() -> None:
    rng = np.random.default_rng(1)
    for length in [*rng.integers(1, 3000, 100), 300_000]:
        ramp = np.arange(length, dtype=np.int32)[None]
        for resized in (int(r) for r in rng.integers(1, 3000, 5)):
            whole = Image.fromarray(ramp).resize((resized, 1), Image.Resampling.NEAREST)
            np.testing.assert_array_equal(nearest_samples(int(length), resized), np.asarray(whole)[0])


def test_resize_of_one_side_beyond_all_measure_is_refused() -> None:
    p = Preprocessing(Color.GRAY, 256, (224, 224), Interpolation.NEAREST)
    with pytest.raises(ImageError) as caught:
        to_array(Image.new("L", (70_000, 1)), p)
    assert caught.value.code is ErrorCode.TOO_LARGE


def test_longer_side_is_rounded_down() -> None:
    assert resized_shape(375, 500, 256) == (256, 341)
    assert resized_shape(500, 375, 256) == (341, 256)
    assert resized_shape(10, 10, (3, 7)) == (3, 7)


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize(
    ("mode", "tolerance"), [("L", 0), ("RGB", 0), ("RGBA", 0), ("P", 0), ("LA", 0), ("CMYK", 1), ("YCbCr", 2)]
)
@pytest.mark.parametrize("color", list(Color))
def test_grey_ramp_stays_itself_in_every_mode(mode: str, tolerance: int, color: Color) -> None:
    converted = to_color(Image.fromarray(RAMP).convert(mode), color)
    assert converted.mode == color.value
    pixels = np.asarray(converted).reshape(16, 16, -1).astype(int)
    assert np.abs(pixels[..., :3] - RAMP[..., None]).max() <= tolerance
    assert (pixels[..., 3:] == 255).all()


def test_bilevel_image_is_black_and_white() -> None:
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(np.asarray(to_color(image, Color.GRAY)), [[0, 255]])


def test_transparency_is_dropped_not_composited() -> None:
    pixel = Image.new("RGBA", (1, 1), (10, 20, 30, 0))
    assert to_color(pixel, Color.RGB).getpixel((0, 0)) == (10, 20, 30)


def test_palette_with_transparency_is_read_without_a_warning() -> None:
    image = Image.fromarray(RAMP).convert("P")
    image.info["transparency"] = bytes(range(256))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(np.asarray(to_color(image, Color.GRAY)), RAMP)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_are_scaled_not_clipped(mode: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]])
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = Image.frombytes(mode, (6, 1), values.astype(dtype).tobytes())
    np.testing.assert_array_equal(np.asarray(to_color(image, Color.GRAY)), [[0, 0, 1, 1, 128, 255]])


def test_sixteen_bit_png_file_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "deep.png")
    array = load(FileItem(str(tmp_path / "deep.png")), Preprocessing(Color.RGB, 8, (8, 8))).pixels
    np.testing.assert_array_equal(array, np.full((3, 8, 8), np.float32(128) / 255))


@pytest.mark.parametrize(
    "image",
    [
        Image.new("F", (2, 2)),
        Image.fromarray(np.array([[-1, 3]], np.int32)),
        Image.fromarray(np.array([[1 << 20, 3]], np.int32)),
        Image.new("LAB", (2, 2)),
    ],
    ids=["float", "negative", "beyond 16 bits", "LAB"],
)
def test_mode_without_a_defined_conversion_is_unsupported(image: Image.Image) -> None:
    with pytest.raises(ImageError) as caught:
        to_color(image, Color.RGB)
    assert caught.value.code is ErrorCode.UNSUPPORTED


def test_animation_says_how_many_frames_it_has(tmp_path: Path) -> None:
    first, *others = [Image.new("RGB", (8, 8), (level,) * 3) for level in (255, 0, 0, 0)]
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=[10, 20, 30, 40])
    loaded = load(FileItem(str(tmp_path / "a.gif")), Preprocessing(Color.RGB, 8, (8, 8)))
    assert loaded.pixels.min() > 0.99
    assert loaded.frames > 1


def scene(height: int, width: int) -> Image.Image:
    """Smooth shapes, as photographs have them."""
    y, x = np.mgrid[:height, :width] / 40
    waves = [np.sin(x + k) + np.cos(y * (1 + k / 3)) + np.sin(x * y / 30) for k in range(3)]
    return Image.fromarray(np.uint8(np.stack(waves, axis=2) * 40 + 128))


@pytest.mark.parametrize("size", [(375, 500), (960, 1280), (1280, 720), (64, 2000), (2000, 64)], ids=str)
@pytest.mark.parametrize("resize", [256, (256, 256)], ids=str)
def test_fast_decoding_gives_nearly_the_same_picture(
    tmp_path: Path, size: tuple[int, int], resize: int | tuple[int, int]
) -> None:
    scene(*size).save(tmp_path / "a.jpg", quality=95)
    item, p = FileItem(str(tmp_path / "a.jpg")), Preprocessing(Color.RGB, resize, (224, 224))
    exact, fast = load(item, p).pixels, load(item, p, fast=True).pixels
    assert exact.shape == fast.shape
    assert np.abs(exact - fast).mean() < 2 / 255
