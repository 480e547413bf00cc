from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from sad_deploy import fold_batchnorm
from sad_deploy.fold import ChannelAffine
from sad_deploy.models import build_model
from sad_runtime.errors import UserError
from tests.support.networks import changed, images, randomize_batchnorm, small_network, state


def count(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


def assert_same_function(model, x, *, tolerance=1e-5):
    folded = fold_batchnorm(model)
    with torch.no_grad():
        expected, found = model.eval()(x), folded(x)
    assert float((found - expected).norm() / expected.norm()) <= tolerance
    if expected.dim() == 2:
        assert torch.equal(found.argmax(1), expected.argmax(1))
    assert count(folded, BatchNorm) == 0
    return folded


def test_conv_and_linear_are_folded_and_nothing_is_left_behind():
    model = small_network(dropout=0.5).train()
    before = state(model)
    folded = assert_same_function(model, images(8))
    assert count(folded, ChannelAffine) == 0 and count(folded, nn.Identity) == 2
    assert changed(before, model) == set() and not any(module.training for module in folded.modules())


def test_folding_is_exact_in_double_precision():
    assert_same_function(small_network().double(), images(8).double(), tolerance=1e-14)


@pytest.mark.parametrize(
    ("name", "side", "affines"),
    [
        ("cifar-resnet18", 32, 0),
        ("cifar-resnet50", 16, 0),
        ("digits", 16, 0),
        ("vgg11_bn", 64, 0),
        ("mobilenet_v3_small", 64, 0),
        ("efficientnet_b0", 64, 0),
        ("shufflenet_v2_x0_5", 64, 0),
        ("densenet121", 64, 62),
        # 14 of 15 units begin after a sum, and the last norm does; the first one follows the stem.
        ("cifar-wrn32-10", 8, 15),
    ],
)
def test_folded_networks_give_the_same_logits(name, side, affines):
    torch.manual_seed(0)
    model = randomize_batchnorm(build_model(name, 10))
    x = images(8 if side < 64 else 4, channels=1 if name == "digits" else 3, side=side)
    folded = assert_same_function(model, x)
    assert count(folded, ChannelAffine) == affines


@pytest.mark.parametrize(("name", "side"), [("googlenet", 64), ("inception_v3", 96)])
def test_auxiliary_heads_fold_too(name, side):
    torch.manual_seed(0)
    model = randomize_batchnorm(torchvision.models.get_model(name, num_classes=10, init_weights=False))
    assert_same_function(model, images(4, side=side))


class Wired(nn.Module):
    """A convolution and a BatchNorm, connected as ``wiring`` says."""

    def __init__(self, wiring):
        super().__init__()
        self.conv, self.norm, self.wiring = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), wiring

    def forward(self, x):
        return self.wiring(self, x)


WIRINGS = {
    "conv output used elsewhere": lambda m, x: m.norm(y := m.conv(x)) + y,
    "conv used twice": lambda m, x: m.norm(m.conv(m.conv(x))),
    "norm used twice": lambda m, x: m.norm(torch.relu(m.norm(m.conv(x)))),
    "norm in front of a padded conv": lambda m, x: m.conv(m.norm(x)),
    "conv weight read elsewhere": lambda m, x: m.norm(m.conv(x)) * m.conv.weight.sum(),
    "norm called by keyword": lambda m, x: m.norm(input=m.conv(x)),
    "something in between": lambda m, x: m.norm(torch.relu(m.conv(x))),
    "not traceable": lambda m, x: m.norm(m.conv(x)) if float(x.sum()) > 0 else x,
}


@pytest.mark.parametrize("wiring", WIRINGS.values(), ids=WIRINGS.keys())
def test_where_folding_would_be_wrong_an_affine_stands_in(wiring):
    model = randomize_batchnorm(Wired(wiring)).eval()
    folded = assert_same_function(model, images(4))
    assert isinstance(folded.norm, ChannelAffine)


def test_a_norm_whose_weight_is_read_elsewhere_is_kept():
    model = randomize_batchnorm(Wired(lambda m, x: m.norm(m.conv(x)) * m.norm.weight.sum())).eval()
    folded = fold_batchnorm(model)
    torch.testing.assert_close(folded(images(2)), model(images(2)))


def test_definition_order_does_not_matter():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm_b, self.norm_a = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.conv_a, self.conv_b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x):
            return self.norm_b(self.conv_b(torch.relu(self.norm_a(self.conv_a(x)))))

    folded = assert_same_function(randomize_batchnorm(Backwards()), images(2))
    assert count(folded, nn.Identity) == 2


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("conv", "norm", "rank"),
    [
        (nn.Conv1d, nn.BatchNorm1d, 1),
        (nn.Conv2d, nn.BatchNorm2d, 2),
        (nn.Conv3d, nn.BatchNorm3d, 3),
        (nn.ConvTranspose1d, nn.BatchNorm1d, 1),
        (nn.ConvTranspose2d, nn.BatchNorm2d, 2),
        (nn.ConvTranspose3d, nn.BatchNorm3d, 3),
    ],
)
def test_every_convolution_folds_with_groups_and_without_bias(conv, norm, rank, groups, bias):
    torch.manual_seed(0)
    model = nn.Sequential(conv(4, 6, 3, stride=2, groups=groups, bias=bias), norm(6, affine=bias))
    x = torch.randn(2, 4, *[7] * rank)
    assert count(assert_same_function(randomize_batchnorm(model), x), nn.Identity) == 1


def test_a_linear_over_tokens_is_not_folded_into_a_norm_over_them():
    model = randomize_batchnorm(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)))
    folded = assert_same_function(model, torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0)))
    assert isinstance(folded[1], ChannelAffine)


class Flattened(nn.Module):
    """Linear and BatchNorm1d behind a flatten of (N, 3, 8, 8)."""

    def __init__(self, flatten, width, features):
        super().__init__()
        self.flatten, self.fc, self.norm = flatten, nn.Linear(width, features), nn.BatchNorm1d(features)

    def forward(self, x):
        return self.norm(self.fc(self.flatten(x)))


@pytest.mark.parametrize(
    "flatten",
    [
        nn.Flatten(),
        lambda x: torch.flatten(x, 1),
        lambda x: x.flatten(1, -1),
        lambda x: x.flatten(start_dim=1),
        lambda x: torch.flatten(x, start_dim=1, end_dim=-1),
    ],
)
def test_a_linear_behind_a_flatten_of_all_but_the_images_is_folded(flatten):
    model = randomize_batchnorm(Flattened(flatten, 192, 5))
    assert count(assert_same_function(model, images(4)), nn.Identity) == 1


def test_a_linear_called_by_keyword_is_not_folded():
    class ByKeyword(Flattened):
        def forward(self, x):
            return self.norm(self.fc(input=self.flatten(x)))

    model = randomize_batchnorm(ByKeyword(nn.Flatten(), 192, 5))
    assert isinstance(assert_same_function(model, images(4)).norm, ChannelAffine)


# As many features as tokens: a norm over the tokens could be folded, wrongly, without an error.
@pytest.mark.parametrize(
    ("flatten", "width", "tokens"),
    [
        (nn.Flatten(2), 64, 3),
        (nn.Flatten(1, 2), 8, 24),
        (lambda x: torch.flatten(x, 2), 64, 3),
        (lambda x: torch.flatten(x, -2), 64, 3),
        (lambda x: x.flatten(1, 2), 8, 24),
        (lambda x: x.flatten(start_dim=1, end_dim=2), 8, 24),
    ],
)
def test_a_linear_behind_any_other_flatten_is_not_folded(flatten, width, tokens):
    model = randomize_batchnorm(Flattened(flatten, width, tokens))
    assert isinstance(assert_same_function(model, images(4)).norm, ChannelAffine)


def test_tied_weights_are_folded_only_where_the_norm_follows():
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3))
    model[3].weight = model[0].weight
    folded = assert_same_function(randomize_batchnorm(model), images(2))
    assert torch.equal(folded[3].weight, model[3].weight)


def test_a_norm_registered_under_two_names_is_replaced_under_both():
    norm = nn.BatchNorm2d(3)
    model = nn.ModuleDict({"a": norm, "b": norm})
    folded = fold_batchnorm(model)
    assert folded["a"] is folded["b"] and isinstance(folded["a"], ChannelAffine)


def test_a_weight_standardised_convolution_is_not_folded():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return nn.functional.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)

    model = randomize_batchnorm(nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4)))
    assert_same_function(model, images(2))


def test_a_norm_with_a_forward_of_its_own_is_left_alone():
    class NormAndActivation(nn.BatchNorm2d):
        def forward(self, x):
            return torch.relu(super().forward(x))

    model = randomize_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), NormAndActivation(4))).eval()
    folded = fold_batchnorm(model)
    torch.testing.assert_close(folded(images(2)), model(images(2)))


def test_a_bare_batchnorm_and_a_model_without_one():
    assert_same_function(randomize_batchnorm(nn.BatchNorm2d(3)), images(2))
    plain = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert torch.equal(fold_batchnorm(plain)(images(1)), plain(images(1)))


def test_sync_batchnorm_folds():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4))
    assert count(assert_same_function(randomize_batchnorm(model), images(2)), nn.Identity) == 1


def test_batchnorm_without_running_statistics_cannot_be_folded():
    with pytest.raises(UserError, match="1 of 1"):
        fold_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)))
