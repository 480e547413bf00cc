from __future__ import annotations

import pytest
import torch
from torch import nn

from sad_deploy.models import build_model
from sad_deploy.models.cifar import PreActivationUnit, WideResNet

PUBLISHED_PARAMETERS = {
    ("cifar-resnet18", 10): 11_173_962,
    ("cifar-resnet50", 10): 23_520_842,
    ("cifar-wrn32-10", 10): 46_160_474,
    ("cifar-wrn32-10", 100): 46_160_474 + 90 * 641,
}


@pytest.mark.parametrize(("name", "classes"), PUBLISHED_PARAMETERS)
def test_parameter_counts_are_the_published_ones(name, classes):
    with torch.device("meta"):
        model = build_model(name, classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED_PARAMETERS[name, classes]


def test_the_wide_network_has_five_pre_activation_units_a_stage_of_width_ten():
    with torch.device("meta"):
        model = build_model("cifar-wrn32-10", 10)
    assert isinstance(model, WideResNet)
    stages = [model.block1, model.block2, model.block3]
    assert [len(stage.layer) for stage in stages] == [5, 5, 5]
    assert [stage.layer[-1].conv2.out_channels for stage in stages] == [160, 320, 640]
    assert [stage.layer[0].conv1.stride for stage in stages] == [(1, 1), (2, 2), (2, 2)]
    in_paths = [m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and "Shortcut" not in name]
    assert len(in_paths) + 1 == 32


def test_a_unit_of_the_same_shape_is_the_identity_plus_its_branch():
    unit = PreActivationUnit(4, 4, stride=1).eval()
    nn.init.zeros_(unit.conv2.weight)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(unit(x), x)


@pytest.mark.parametrize("name", ["cifar-resnet18", "cifar-resnet50"])
def test_cifar_form_keeps_32_pixels_in_the_first_stage(name):
    model = build_model(name, 10)
    sides = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda _, __, output: sides.append(output.shape[-1]))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert sides == [32, 16, 8, 4]
