"""Networks of one, three and four channels and of inputs that are no squares: calibrate, export, infer."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from sad_deploy.calibrated import load_calibrated
from sad_deploy.classifier import standardized
from sad_deploy.preparation import prepare
from sad_deploy.recipe import Options, resolve
from sad_runtime import Classifier
from sad_runtime.errors import UserError
from sad_runtime.manifest import Color

NETWORKS = """
import torch
from torch import nn

def net(channels=3):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(channels, 6, 3, 2), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 8, 3, 2), nn.BatchNorm2d(8),
        nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )
    for _ in range(20):
        model(torch.randn(16, channels, 20, 20))
    return model
"""


@pytest.fixture
def folder(images):
    (images / "channel_networks.py").write_text(NETWORKS)
    rng = np.random.default_rng(1)
    for i, path in enumerate(sorted((images / "images").iterdir())):
        picture = Image.open(path).convert("RGBA")
        picture.putalpha(Image.fromarray(rng.integers(128, 256, (36, 40), dtype=np.uint8)))
        picture.convert(("RGBA", "RGB", "L", "LA")[i % 4]).save(path)
    yield images
    sys.modules.pop("channel_networks", None)


@pytest.mark.parametrize(
    ("channels", "color", "size"),
    [(1, Color.GRAY, "24"), (3, Color.RGB, "20,32"), (4, Color.RGBA, "24"), (4, Color.RGBA, "16,28")],
)
def test_it_goes_from_calibrate_to_infer(folder, calibrated_and_exported, channels, color, size):
    values = ",".join(["0.5"] * channels)
    way = calibrated_and_exported(
        model=f"channel_networks:net(channels={channels})", image_size=size, mean=values, std=values
    )
    height, width = (int(size.split(",")[0]), int(size.split(",")[-1]))
    preprocessing = way.prepared.preprocessing
    assert preprocessing.color is color and preprocessing.shape == (channels, height, width)
    paths = sorted((folder / "images").iterdir())[:8]
    model, manifest = load_calibrated(folder / "bundle")
    with Classifier.load(folder / "bundle", backend="cpu") as classifier:
        found = classifier.predict(paths, outputs=["plain_logits"])
    pixels = []
    for path in paths:
        picture = Image.open(path)
        picture = picture.convert("RGBA" if color is Color.RGBA else color.value)
        shorter = (
            (round(height * 40 / 36) if 40 * height < 36 * width else height) if height == width else height
        )
        resized = (int(shorter * 40 / 36), shorter) if height == width else (width, height)
        left = round((resized[0] - width) / 2)
        picture = picture.resize(resized, Image.Resampling.BILINEAR).crop((left, 0, left + width, height))
        array = np.asarray(picture, dtype=np.float32) / 255
        pixels.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
    x = standardized(torch.from_numpy(np.stack(pixels)), manifest.input_space)
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(found.plain_logits, expected, atol=0.02 * np.abs(expected).max())


def test_overlays_of_four_channels_are_pictures(folder, calibrated_and_exported):
    values = "0.5,0.5,0.5,0.5"
    calibrated_and_exported(model="channel_networks:net(channels=4)", image_size=24, mean=values, std=values)
    from sad_runtime.overlay import render

    picture = render(np.full((4, 24, 24), 0.5, np.float32), np.ones((4, 24, 24), np.float32))
    assert picture.mode == "RGB"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": "0,0", "std": "1,1"}, "one value, three .RGB. or four .RGBA.*other numbers of channels"),
        ({"image_size": "20x30"}, "--image-size takes a side or height,width"),
        ({"image_size": "0"}, "--image-size takes a side or height,width"),
        ({"image_size": "1,2,3"}, "--image-size takes a side or height,width"),
    ],
)
def test_what_cannot_be_read_is_said(options, message):
    with pytest.raises(UserError, match=message):
        resolve(Options(**options))


def test_a_network_of_other_channels_than_the_images_is_named(folder):
    options = Options(model="channel_networks:net(channels=5)", data="images", batch_size=2, image_size=24)
    with pytest.raises(UserError, match=r"does not accept images of .*to have 5 channels"):
        prepare(resolve(options))
