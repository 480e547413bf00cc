"""Checkpoints as people have them, into networks as people build them."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from sad_deploy.batchnorm import batchnorm_layers, read_statistics, update_statistics
from sad_deploy.checkpoints import load_weights
from sad_deploy.models.plain import thawed
from sad_runtime.errors import UserError
from tests.support.networks import changed, images, small_network, state


def load(model, weights, **options):
    return load_weights(model, weights, source="weights.pt", num_classes=5, **options)


def prefixed(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "encoder.", "module.model.", "net.module."])
def test_any_prefix_is_found_and_said_in_one_line(prefix):
    model, other = small_network(seed=0), state(small_network(seed=1))
    notes = load(model, prefixed(prefix, other))
    assert changed(other, model) == set()
    assert notes == (f"the weights of weights.pt whose names begin with {prefix} were taken",)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_what_a_wrapper_holds_is_put_into_the_wrapper(prefix):
    model, other = nn.ModuleDict({"inner": small_network(seed=0)}), state(small_network(seed=1))
    notes = load(model, prefixed(prefix, other))
    assert changed(prefixed("inner.", other), model) == set()
    assert notes[-1] == "the weights of weights.pt are those of the network's inner"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_become_the_networks_and_that_is_said(dtype):
    model, other = small_network(seed=0), small_network(seed=1)
    weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state(other).items()}
    (note,) = load(model, weights)
    assert note == f"weights.pt is in {str(dtype)[6:]}; float32 is computed in"
    for name, value in model.state_dict().items():
        assert value.dtype is other.state_dict()[name].dtype
        assert torch.equal(value, weights[name].to(value.dtype))


def test_the_nearest_name_stands_beside_a_missing_one():
    weights = state(small_network(seed=1))
    weights["0.conv.weight"] = weights.pop("0.weight")
    with pytest.raises(
        UserError, match=r"1 missing: 0\.weight \(nearest: 0.conv.weight\); 1 unexpected: 0.conv"
    ):
        load(small_network(), weights)


def test_weights_for_images_of_other_channels_are_named_as_such():
    with pytest.raises(UserError, match=r"0.weight \(8, 1, 3, 3\) instead of \(8, 3, 3, 3\)") as error:
        load(small_network(), state(small_network(channels=1)))
    assert "for images of 1 channels, the network for 3" in str(error.value.hint)


def test_what_profilers_leave_is_left_out_and_said():
    model, other = small_network(seed=0), state(small_network(seed=1))
    counted = {"total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)}
    (note,) = load(model, other | counted)
    assert note == "left out of weights.pt: 0.total_params, total_ops"
    assert changed(other, model) == set()


def test_keys_are_ignored_by_patterns():
    model, other = small_network(seed=0), state(small_network(seed=1))
    weights = other | {"aux.0.weight": torch.ones(2), "aux.1.bias": torch.ones(2)}
    with pytest.raises(UserError, match="2 unexpected") as error:
        load(model, weights)
    assert "--ignore-keys" in str(error.value.hint)
    (note,) = load(model, weights, ignore_keys=("aux.*",))
    assert note == "left out of weights.pt: aux.0.weight, aux.1.bias"
    with pytest.raises(UserError, match=r"--ignore-keys ax\.\*: no name in weights.pt is like that"):
        load(model, weights, ignore_keys=("aux.*", "ax.*"))


def test_quantized_weights_are_refused():
    weights = state(small_network(seed=1))
    weights["0.weight"] = torch.quantize_per_tensor(weights["0.weight"], 0.1, 0, torch.qint8)
    with pytest.raises(UserError, match=r"1 quantized: 0\.weight"):
        load(small_network(), weights)


# BatchNorm in all its forms


def moved(model):
    layers = batchnorm_layers(model)
    before = read_statistics(layers)
    update_statistics(model, layers, images(8), momentum=None)
    after = read_statistics(layers)
    return [name for name in before if not torch.equal(before[name].mean, after[name].mean)]


def test_sync_batchnorm_calibrates_in_one_process_and_loads_what_several_wrote():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(small_network())
    load(model, prefixed("module.", state(small_network(seed=1))))
    assert moved(model) == ["1", "7"]


def test_layers_frozen_by_their_owner_calibrate():
    model = small_network()
    for layer in batchnorm_layers(model).values():
        layer.eval().requires_grad_(False)
    assert moved(model) == ["1", "7"]


def test_frozen_batchnorm_becomes_batchnorm_and_computes_the_same():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5, norm_layer=FrozenBatchNorm2d).eval()
    for name, buffer in model.named_buffers():
        buffer.copy_(torch.rand_like(buffer) + (0.5 if "var" in name else 0))
    x = images(2, side=32)
    with torch.no_grad():
        expected = model(x)
        thawed(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert len(batchnorm_layers(model)) == 20
    frozen = torchvision.models.resnet18(num_classes=5, norm_layer=FrozenBatchNorm2d).state_dict()
    load(model, frozen)


def test_a_frozen_batchnorm_that_does_more_stays():
    class FrozenBatchNormAct2d(FrozenBatchNorm2d):
        def forward(self, x):
            return torch.relu(super().forward(x))

    model = thawed(nn.Sequential(FrozenBatchNormAct2d(4)))
    assert isinstance(model[0], FrozenBatchNormAct2d)
