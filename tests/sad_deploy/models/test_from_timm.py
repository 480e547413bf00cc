"""``--model timm:NAME``, by the installed timm, without a network."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from sad_deploy.models import build_model
from sad_deploy.models.pretrained import find_pretrained, weight_names
from sad_deploy.preparation import prepare
from sad_deploy.recipe import Options, resolve
from sad_runtime.errors import UserError
from sad_runtime.manifest import Color, Interpolation

timm = pytest.importorskip("timm", reason="timm is not installed: pip install sad-deploy[timm]")


@pytest.fixture
def weights(images):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    safetensors.torch.save_file(model.state_dict(), images / "weights.safetensors")
    return images


def test_a_network_of_timm_goes_the_whole_way_with_its_own_preprocessing(weights, calibrated_and_exported):
    way = calibrated_and_exported(model="timm:test_resnet", weights="weights.safetensors", image_size=32)
    ready = way.prepared
    assert ready.source.name == "timm:test_resnet" and ready.classes == ("0", "1", "2")
    assert ready.input_space.mean == (0.5, 0.5, 0.5) and not ready.assumed
    assert ready.preprocessing.interpolation is Interpolation.BILINEAR
    assert any("read from ResNet.pretrained_cfg" in note for note in ready.notes)


def test_its_input_is_of_the_size_that_timm_says(weights):
    ready = prepare(
        resolve(Options(model="timm:test_resnet", weights="weights.safetensors", data="images", batch_size=2))
    )
    assert ready.preprocessing.shape == (3, 160, 160) and ready.preprocessing.resize == 168


def test_class_names_are_read_from_the_configuration_beside_the_weights(weights):
    config = {"architecture": "test_resnet", "num_classes": 3, "label_names": ["n1", "n2", "n3"]}
    options = Options(model="timm:test_resnet", weights="weights.safetensors", data="images", batch_size=2)
    (weights / "config.json").write_text(json.dumps(config))
    assert prepare(resolve(options)).classes == ("n1", "n2", "n3")
    config["label_descriptions"] = {"n1": "ant", "n2": "bee", "n3": "cat"}
    (weights / "config.json").write_text(json.dumps(config))
    assert prepare(resolve(options)).classes == ("ant", "bee", "cat")


def test_arguments_are_those_of_create_model(weights):
    assert build_model("timm:test_resnet(in_chans=1)", 5)(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
    assert build_model("timm:test_resnet(num_classes=7)", 5).num_classes == 7


def test_a_grey_network_says_so_with_one_mean_value(images, calibrated_and_exported):
    model = timm.create_model("test_resnet", num_classes=3, in_chans=1)
    safetensors.torch.save_file(model.state_dict(), images / "grey.safetensors")
    way = calibrated_and_exported(
        model="timm:test_resnet(in_chans=1)", weights="grey.safetensors", image_size=32, mean="0.5", std="0.5"
    )
    assert way.prepared.preprocessing.color is Color.GRAY


def test_published_weights_have_their_classes_and_are_read_from_the_cache(tmp_path, monkeypatch):
    assert weight_names("timm:resnet10t.c3_in1k") == ["DEFAULT"]
    found = find_pretrained("timm:resnet10t.c3_in1k", "DEFAULT")
    assert found is not None and found.classes is not None
    assert len(found.classes) == 1000 and found.classes[0] == "tench"
    hub = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="could not be read or downloaded") as error:
        found.state_dict()
    assert "--weights" in str(error.value.hint)
    expected = timm.create_model("resnet10t").state_dict()
    repository = tmp_path / "models--timm--resnet10t.c3_in1k"
    (repository / "snapshots" / "0").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0")
    safetensors.torch.save_file(expected, repository / "snapshots" / "0" / "model.safetensors")
    state = found.state_dict()
    assert state.keys() == expected.keys() and torch.equal(state["fc.weight"], expected["fc.weight"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet17t", r"has no model 'resnet17t'; close: .*resnet14t"),
        (
            "timm:test_resnet(width=3)",
            r"timm does not build test_resnet\(num_classes=4, width=3\): TypeError",
        ),
        ("timm:test_resnet.no_such_tag", "timm does not build test_resnet.no_such_tag"),
    ],
)
def test_what_timm_does_not_have_is_one_line(name, message):
    with pytest.raises(UserError, match=message) as error:
        build_model(name, 4)
    assert "\n" not in error.value.message


def test_without_weights_it_is_refused(images):
    with pytest.raises(UserError, match="needs --weights") as error:
        prepare(resolve(Options(model="timm:resnet10t", data="images", batch_size=2)))
    assert "timm's DEFAULT" in str(error.value.hint)
