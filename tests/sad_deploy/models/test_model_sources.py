from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from sad_deploy.models import build_model, model_names
from sad_deploy.models.pretrained import find_pretrained, weight_names
from sad_deploy.models.sources import classes_in
from sad_runtime.errors import UserError
from sad_runtime.manifest import Interpolation


def test_an_unknown_name_lists_close_ones():
    with pytest.raises(UserError, match=r"no model named 'resnet81'; close: .*resnet18"):
        build_model("resnet81", 10)


def test_arguments_for_a_network_that_takes_none_are_refused():
    with pytest.raises(UserError, match="resnet18 takes no arguments here") as error:
        build_model("resnet18(in_chans=1)", 10)
    assert "timm:resnet18(" in str(error.value.hint)


def test_every_torchvision_classifier_is_known_and_built_without_auxiliary_heads():
    assert set(torchvision.models.list_models(module=torchvision.models)) <= set(model_names())
    with torch.device("meta"):
        for name in ("googlenet", "inception_v3", "shufflenet_v2_x0_5"):
            model = build_model(name, 7)
            assert not model.training
            assert not any("aux" in key.lower() for key in model.state_dict())


@pytest.mark.parametrize(
    "name", ["digits", "cifar-resnet18", "vgg11_bn", "densenet121", "mobilenet_v3_small"]
)
def test_the_class_count_is_read_from_a_checkpoint(name):
    with torch.device("meta"):
        state = build_model(name, 37).state_dict()
    assert classes_in(name, state) == 37
    assert classes_in(name, {f"model.{key}": value for key, value in state.items()}) == 37
    assert classes_in(name, {}) is None


def test_published_weights_bring_their_classes_and_preprocessing():
    found = find_pretrained("resnet18", "DEFAULT")
    assert found is not None
    assert found.name == "ResNet18_Weights.IMAGENET1K_V1"
    assert len(found.classes) == 1000 and found.classes[0] == "tench"
    assert found.images is not None
    preprocessing, space = found.images
    assert preprocessing.resize == 256 and preprocessing.shape == (3, 224, 224)
    assert space.mean == (0.485, 0.456, 0.406)
    second = find_pretrained("efficientnet_b0", "IMAGENET1K_V1")
    assert second is not None and second.images is not None
    assert second.images[0].interpolation is Interpolation.BICUBIC
    assert find_pretrained("resnet18", "IMAGENET1K_V9") is None
    assert weight_names("digits") == [] and "IMAGENET1K_V2" in weight_names("resnet50")


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_preprocessing_of_all_published_weights_can_be_read(name):
    assert find_pretrained(name, "DEFAULT") is not None


def test_published_weights_load_from_the_hub_cache_without_running_code(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    found = find_pretrained("shufflenet_v2_x0_5", "IMAGENET1K_V1")
    assert found is not None
    file = checkpoints / torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    expected = build_model("shufflenet_v2_x0_5", 1000).state_dict()
    torch.save(expected, file)
    assert torch.equal(found.state_dict()["fc.weight"], expected["fc.weight"])
    torch.save(nn.Linear(2, 2), file)
    with pytest.raises(UserError, match="damaged"):
        found.state_dict()


def test_published_googlenet_is_the_same_function_in_the_declared_input_space():
    original = torchvision.models.googlenet(
        num_classes=10, aux_logits=False, init_weights=False, transform_input=True
    ).eval()
    ours = build_model("googlenet", 10)
    ours.load_state_dict(original.state_dict())
    pretrained = find_pretrained("googlenet", "DEFAULT")
    assert pretrained is not None and pretrained.images is not None
    image = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    declared_mean, declared_std = (
        torch.tensor(v).reshape(-1, 1, 1) for v in (pretrained.images[1].mean, pretrained.images[1].std)
    )
    with torch.no_grad():
        expected, found = original((image - mean) / std), ours((image - declared_mean) / declared_std)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
