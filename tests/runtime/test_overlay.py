from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sad_runtime.errors import UserError
from sad_runtime.overlay import OverlayWriter, color_map, magnitude, overlay, render
from sad_runtime.sources import open_sources


def lab(colors: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of sRGB colours, to judge the map by another space than the one it was made in."""
    from skimage.color import rgb2lab

    return np.asarray(rgb2lab(colors[None].astype(np.float64) / 255)[0])


def test_color_map_grows_lighter_evenly() -> None:
    lightness = lab(color_map())[:, 0]
    assert lightness[0] < 12
    assert lightness[-1] > 90
    steps = np.diff(lightness[::8])
    assert (steps > 0).all()
    assert steps.max() < 2 * steps.min()


def test_color_map_has_steps_that_look_alike() -> None:
    steps = np.linalg.norm(np.diff(lab(color_map())[::8], axis=0), axis=1)
    assert steps.max() < 2.5 * steps.min()


def test_magnitude_is_the_largest_channel_on_the_scale_of_the_image() -> None:
    saliency = np.zeros((3, 10, 20), np.float32)
    saliency[1] = np.linspace(-2, 2, 200, dtype=np.float32).reshape(10, 20)
    saliency[2, 0, 0] = 1e6  # one extreme pixel
    shown = magnitude(saliency)
    assert shown.max() == 1
    assert shown[0, 0] == 1
    np.testing.assert_allclose(shown[5], np.abs(saliency[1, 5]) / 2, atol=0.02)


def test_scale_of_the_saliency_does_not_show() -> None:
    saliency = np.random.default_rng(0).normal(size=(3, 9, 9)).astype(np.float32)
    np.testing.assert_allclose(magnitude(saliency * 1e-20), magnitude(saliency), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_map_without_contrast_or_of_bad_values_is_still_a_picture(value: float) -> None:
    saliency = np.full((3, 8, 8), value, np.float32)
    shown = magnitude(saliency)
    assert np.isfinite(shown).all()
    assert render(np.zeros((3, 8, 8), np.float32), saliency).size == (456, 224)


def test_single_salient_pixel_is_seen() -> None:
    saliency = np.zeros((1, 32, 32), np.float32)
    saliency[0, 3, 4] = -1e-9
    assert magnitude(saliency)[3, 4] == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_left_half_is_the_enlarged_input(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (channels, 16, 20)).astype(np.float32) / 255
    picture = np.asarray(render(image, np.ones((channels, 16, 20), np.float32)))
    assert picture.shape == (224, 2 * 280 + 8, 3)
    expected = np.broadcast_to(np.round(image * 255), (3, 16, 20)).transpose(1, 2, 0)
    np.testing.assert_array_equal(picture[7::14, 7:280:14], expected)
    assert (picture[:, 280:288] == 255).all()


def test_large_input_keeps_its_size() -> None:
    zeros = np.zeros((3, 224, 300), np.float32)
    assert render(zeros, zeros).size == (608, 224)


def test_salient_pixels_are_brighter() -> None:
    saliency = np.zeros((3, 8, 8), np.float32)
    saliency[:, :, 4:] = 1
    picture = np.asarray(render(np.full((3, 8, 8), 0.5, np.float32), saliency).convert("L")).astype(int)
    overlay = picture[:, 232:]
    assert overlay[:, 112:].min() > overlay[:, :112].max() + 80


def test_intensity_goes_from_the_grey_image_to_the_colours_alone() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 9, 9)).astype(np.float32) / 255
    saliency = rng.normal(size=(3, 9, 9)).astype(np.float32)
    grey = np.asarray(overlay(image, saliency, 0.0))
    assert (grey == grey[..., :1]).all()
    colors = color_map()[np.round(magnitude(saliency) * 255).astype(np.uint8)]
    np.testing.assert_array_equal(np.asarray(overlay(image, saliency, 1.0)), colors)
    middle = np.asarray(overlay(image, saliency, 0.5)).astype(int)
    assert abs(middle - (grey.astype(int) + colors) / 2).max() <= 1


@pytest.mark.parametrize("intensity", [-0.1, 1.5, float("nan")])
def test_intensity_out_of_range_is_one_line(tmp_path: Path, intensity: float) -> None:
    with pytest.raises(UserError, match="must be from 0 to 1, got"):
        OverlayWriter(tmp_path, tmp_path, intensity=intensity)


def test_overlay_of_a_member_of_an_archive_lies_under_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    writer = OverlayWriter("out", tmp_path / "in", intensity=1)
    zeros = np.zeros((1, 8, 8), np.float32)
    long = "é" * 200
    names = ["in/photos.zip/a/b.jpg", f"in/photos.zip/{long}/b.jpg", f"in/photos.zip/{long}x/b.jpg"]
    written = [writer.write(name, zeros, zeros) for name in names]
    assert written[0] == Path("out/photos.zip/a/b.jpg.png")
    assert len(set(written)) == 3
    assert all(path.exists() for path in written)


def test_overlays_mirror_the_sources_and_never_collide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        "a/x.png",
        "a/x.jpg",
        "a/x",
        "b/x.png",
        "a/a/x.png",
        "x.png.png",
        "x.png",
        "long/" + "é" * 125 + ".png",
    ]
    names.append("long/" + "é" * 124 + "a.png")
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path / "in" / "a")
    with open_sources(["../a", "..", "x", "../../in/b"]) as sources:
        found = [item.name for item in sources]
        writer = OverlayWriter(tmp_path / "out", sources.base)
    assert len(found) == len(names)
    zeros = np.zeros((3, 8, 8), np.float32)
    written = {writer.write(name, zeros, zeros) for name in found}
    assert len(written) == len(names)
    assert all(path.resolve().is_relative_to(tmp_path / "out") for path in written)
    assert (tmp_path / "out" / "a" / "a" / "x.png.png") in written
    assert {path for path in (tmp_path / "out").rglob("*") if path.is_file()} == written


def test_image_outside_the_base_is_never_written(tmp_path: Path) -> None:
    writer = OverlayWriter(tmp_path / "out", tmp_path / "in")
    with pytest.raises(ValueError, match="not in the subpath"):
        writer.path(tmp_path / "in" / ".." / "other.png")


def test_link_in_the_place_of_an_overlay_is_followed_not_replaced(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.png"
    elsewhere.write_text("an earlier picture")
    writer = OverlayWriter(tmp_path / "out", tmp_path)
    (tmp_path / "out" / "x.png.png").symlink_to(elsewhere)
    zeros = np.zeros((3, 8, 8), np.float32)
    written = writer.write(tmp_path / "x.png", zeros, zeros)
    assert written.is_symlink()
    with Image.open(elsewhere) as picture:
        assert picture.format == "PNG"


def test_pipe_in_the_place_of_an_overlay_is_refused_and_stays(tmp_path: Path) -> None:
    writer = OverlayWriter(tmp_path / "out", tmp_path)
    os.mkfifo(tmp_path / "out" / "x.png.png")
    zeros = np.zeros((3, 8, 8), np.float32)
    with pytest.raises(UserError, match=r"x\.png\.png is a pipe, which is not replaced"):
        writer.write(tmp_path / "x.png", zeros, zeros)
    assert (tmp_path / "out" / "x.png.png").is_fifo()


def test_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write overlays to"):
        OverlayWriter(tmp_path / "file", tmp_path)


def test_overlay_that_cannot_be_written_is_one_line_and_leaves_no_part(tmp_path: Path) -> None:
    writer = OverlayWriter(tmp_path / "out", tmp_path)
    (tmp_path / "out" / "x.png.png").mkdir()
    zeros = np.zeros((3, 8, 8), np.float32)
    with pytest.raises(UserError, match=r"x\.png\.png is a folder; --saliency names a file"):
        writer.write(tmp_path / "x.png", zeros, zeros)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.png.png"]
