"""``--model hf:FOLDER``, by the installed transformers, of folders that it wrote."""

from __future__ import annotations

import json

import pytest
import torch

from sad_deploy.models import build_model
from sad_deploy.preparation import prepare
from sad_deploy.recipe import Options, resolve
from sad_runtime.errors import UserError
from sad_runtime.manifest import Color, Interpolation, Preprocessing

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install sad-deploy[transformers]"
)
LABELS = {0: "ant", 1: "bee", 2: "cat"}
PREPROCESSOR = {
    "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2], "do_rescale": True,
    "rescale_factor": 1 / 255, "do_resize": True, "size": {"shortest_edge": 36}, "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32}, "resample": 3,
}  # fmt: skip


def write(folder, **changes):
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    labels = {"num_labels": 3, "id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}}
    config = transformers.ResNetConfig(**(sizes | labels | changes))
    model = transformers.AutoModelForImageClassification.from_config(config).eval()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return model


@pytest.fixture
def folder(images):
    (images / "ants").mkdir()
    write(images / "ants")
    return images / "ants"


@pytest.mark.parametrize("name", ["hf:ants", "ants"])
def test_a_folder_of_transformers_goes_the_whole_way(folder, calibrated_and_exported, name):
    ready = calibrated_and_exported(model=name).prepared
    assert ready.classes == ("ant", "bee", "cat") and ready.source.name == "hf:ants"
    assert ready.preprocessing == Preprocessing(Color.RGB, 36, (32, 32), Interpolation.BICUBIC)
    assert ready.input_space.mean == (0.5, 0.4, 0.3) and not ready.assumed
    assert ready.weights == {"transformers": "hf:ants"}


def test_it_gives_the_logits_of_transformers(images, folder):
    ready = prepare(resolve(Options(model="hf:ants", data="images", batch_size=2)))
    x = torch.rand(2, 3, 32, 32)
    original = transformers.AutoModelForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(ready.model(x), original(pixel_values=x).logits)


def test_other_weights_may_be_given_by_the_names_that_transformers_has(images, folder):
    torch.manual_seed(1)
    other = transformers.AutoModelForImageClassification.from_config(
        transformers.AutoConfig.from_pretrained(folder)
    )
    torch.save(other.state_dict(), images / "other.pt")
    ready = prepare(resolve(Options(model="hf:ants", weights="other.pt", data="images", batch_size=2)))
    found = ready.model.state_dict()["network.classifier.1.weight"]
    assert torch.equal(found, other.state_dict()["classifier.1.weight"])


def test_labels_that_say_nothing_are_no_class_names(folder):
    write(folder, id2label={i: f"LABEL_{i}" for i in range(3)})
    ready = prepare(resolve(Options(model="hf:ants", data="images", batch_size=2)))
    assert ready.classes == ("0", "1", "2")


def test_arguments_change_its_configuration(folder):
    assert build_model("hf:ants(num_labels=5)", 0)(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def changed(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (config | changes).items() if v}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:nowhere", "no such folder"),
        ("hf:images", "it holds no config.json"),
        ("hf:ants(hidden_sizes=3)", "transformers cannot read ants"),
    ],
)
def test_what_is_no_folder_of_transformers_is_one_line(folder, name, message):
    with pytest.raises(UserError, match=message) as error:
        build_model(name, 3)
    assert "\n" not in error.value.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "transformers cannot read ants"),
        ({"model_type": "none_such"}, "transformers cannot read ants"),
        ({"model_type": None}, "names no model_type"),
        (
            {"model_type": None, "architecture": "resnet10t", "pretrained_cfg": {"tag": ""}},
            "is timm's, of resnet10t",
        ),
        ({"auto_map": {"AutoModel": "code.Net"}}, "needs code of its own"),
    ],
)
def test_configurations_that_cannot_be_used_are_one_line(folder, changes, message):
    changed(folder, **changes)
    with pytest.raises(UserError, match=message) as error:
        build_model("hf:ants", 3)
    assert "\n" not in error.value.message


def test_weights_that_are_not_all_there_are_refused(folder):
    changed(folder, hidden_sizes=[8, 24])
    with pytest.raises(UserError, match=r"do not fit its config\.json: .*of another shape"):
        prepare(resolve(Options(model="hf:ants", data="images", batch_size=2)))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        prepare(resolve(Options(model="hf:ants", data="images", batch_size=2)))
