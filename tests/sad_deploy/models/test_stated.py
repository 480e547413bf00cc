"""Configurations as timm and Hugging Face write them."""

from __future__ import annotations

import json

import pytest
from torch import nn

from sad_deploy.models.stated import stated_by
from sad_runtime.errors import UserError
from sad_runtime.manifest import Color, InputSpace, Interpolation, Preprocessing

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
TIMM = {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.95, **IMAGENET}
NORMALIZED = {
    "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_rescale": True,
    "rescale_factor": 1 / 255,
}  # fmt: skip
RESNET = {
    **NORMALIZED, "do_resize": True, "size": {"shortest_edge": 256}, "do_center_crop": True, "resample": 3,
    "crop_size": {"height": 224, "width": 224},
}  # fmt: skip
BILINEAR, BICUBIC = Interpolation.BILINEAR, Interpolation.BICUBIC


def written(folder, name, config):
    (folder / name).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Preprocessing(Color.RGB, 235, (224, 224), BICUBIC)),
        ({"crop_pct": 1.0, "interpolation": "random"}, Preprocessing(Color.RGB, 224, (224, 224), BILINEAR)),
        ({"crop_mode": "squash"}, Preprocessing(Color.RGB, (235, 235), (224, 224), BICUBIC)),
        ({"input_size": [3, 192, 256]}, Preprocessing(Color.RGB, (202, 269), (192, 256), BICUBIC)),
        (
            {"input_size": [1, 28, 28], "mean": [0.1], "std": [0.3]},
            Preprocessing(Color.GRAY, 29, (28, 28), BICUBIC),
        ),
    ],
)
def test_timm(tmp_path, changes, expected):
    config = TIMM | changes
    found = stated_by(nn.Identity(), written(tmp_path, "config.json", {"pretrained_cfg": config}))
    assert found.preprocessing == expected and found.input_space.mean == tuple(config["mean"])
    model = nn.Identity()
    model.pretrained_cfg = config
    assert stated_by(model, None).preprocessing == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (RESNET, Preprocessing(Color.RGB, 256, (224, 224), BICUBIC)),
        (
            NORMALIZED | {"size": {"height": 224, "width": 192}, "resample": 2},  # ViT
            Preprocessing(Color.RGB, (224, 192), (224, 192), BILINEAR),
        ),
        (
            NORMALIZED | {"size": {"shortest_edge": 224}, "crop_pct": 0.875},  # ConvNeXt
            Preprocessing(Color.RGB, 256, (224, 224), BILINEAR),
        ),
        (
            NORMALIZED | {"size": {"shortest_edge": 384}, "crop_pct": 0.875},
            Preprocessing(Color.RGB, (384, 384), (384, 384), BILINEAR),
        ),
        (NORMALIZED | {"size": 96}, Preprocessing(Color.RGB, 96, (96, 96), BILINEAR)),
    ],
)
def test_hugging_face(tmp_path, config, expected):
    found = stated_by(nn.Identity(), written(tmp_path, "preprocessor_config.json", config))
    assert found.preprocessing == expected
    assert found.input_space == InputSpace((0.5,) * 3, (0.5,) * 3)


def test_pixels_that_are_not_normalised(tmp_path):
    config = RESNET | {"do_normalize": False}
    found = stated_by(nn.Identity(), written(tmp_path, "preprocessor_config.json", config))
    assert found.input_space == InputSpace((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("preprocessor_config.json", RESNET | {"resample": 1}),
        ("preprocessor_config.json", RESNET | {"rescale_factor": 1 / 127.5}),
        ("preprocessor_config.json", {"size": 224}),
        ("preprocessor_config.json", NORMALIZED | {"size": {"shortest_edge": 256}}),
        ("config.json", {"pretrained_cfg": TIMM | {"crop_mode": "border"}}),
        ("config.json", {"pretrained_cfg": TIMM | {"input_size": [5, 64, 64]}}),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(tmp_path, name, config):
    with pytest.raises(UserError, match=f"{name} does not say how images are prepared, or says what cannot"):
        stated_by(nn.Identity(), written(tmp_path, name, config))


def test_what_is_no_json_is_refused(tmp_path):
    weights = written(tmp_path, "config.json", {})
    assert stated_by(nn.Identity(), weights) is None
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        stated_by(nn.Identity(), weights)
