from __future__ import annotations

import pytest
import torch
from torch import nn

from sad_deploy.attacks import Attack, AttackKind, perturb
from sad_deploy.fold import fold_batchnorm
from sad_deploy.saliency import normalize_saliency, saliency
from sad_runtime.choices import Normalization
from sad_runtime.errors import UserError
from sad_runtime.manifest import InputSpace
from tests.support.networks import changed, images, randomize_batchnorm, small_network, state


def test_saliency_is_each_samples_own_gradient_of_its_largest_logit():
    model = small_network().double()
    x = images(6).double()
    found, logits = saliency(model, x)
    for index in range(len(x)):
        leaf = x[index : index + 1].clone().requires_grad_()
        alone = model(leaf)
        (expected,) = torch.autograd.grad(alone[0, alone[0].argmax()], leaf)
        torch.testing.assert_close(found[index], expected[0], rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(logits[index], alone[0].detach(), rtol=1e-10, atol=1e-13)


def test_saliency_agrees_with_central_differences():
    model = small_network().double()
    x = images(4).double()
    s, logits = saliency(model, x)
    top = logits.argmax(dim=1, keepdim=True)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    h = 1e-5
    with torch.no_grad():
        difference = (model(x + h * direction) - model(x - h * direction)).gather(1, top)[:, 0] / (2 * h)
    torch.testing.assert_close((s * direction).flatten(1).sum(1), difference, rtol=1e-6, atol=1e-9)


def test_saliency_is_taken_on_logits_not_on_probabilities():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False)).eval()
    x = images(2, side=2)
    s, logits = saliency(model, x)
    rows = model[1].weight[logits.argmax(1)].detach()
    torch.testing.assert_close(s.flatten(1), rows)


def test_a_tie_goes_to_the_first_maximum():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[0, 0], model[1].weight[1, 1] = 1.0, 1.0
    s, _ = saliency(model, torch.full((1, 3, 2, 2), 0.5))
    assert s.flatten().tolist() == [1.0] + [0.0] * 11


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_saliency_works_for_callers_without_gradients(mode):
    model = small_network()
    x = images(2)
    expected, _ = saliency(model, x)
    with mode():
        found, logits = saliency(model, x * 1)
    assert torch.equal(found, expected)
    assert not found.requires_grad and not logits.requires_grad


def test_saliency_leaves_the_model_as_it_was():
    model = small_network(dropout=0.5).train()
    model[3].eval()
    before = state(model)
    first, _ = saliency(model, images(4))
    second, _ = saliency(model, images(4))
    assert torch.equal(first, second), "dropout and batch statistics must be off"
    assert changed(before, model) == set()
    assert [p.grad for p in model.parameters()] == [None] * len(list(model.parameters()))
    assert model.training and model[1].training and not model[3].training


def test_an_output_that_is_not_logits_is_refused():
    with pytest.raises(UserError, match=r"\(N, K\)"):
        saliency(nn.Conv2d(3, 4, 3), images(2))


@pytest.mark.parametrize("normalization", list(Normalization))
def test_a_zero_map_stays_zero_beside_others(normalization):
    s = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    s[1] = 0
    n = normalize_saliency(s, normalization)
    assert torch.equal(n[1], torch.zeros(2, 4, 4))
    assert bool(n[0].any() and n[2].any())


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_normalised_maps_have_unit_size_whatever_their_scale(scale):
    s = scale * torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    rms = normalize_saliency(s, "rms").flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(rms, torch.ones(4))
    assert torch.equal(normalize_saliency(s, "linf").flatten(1).abs().amax(1), torch.ones(4))
    assert torch.equal(normalize_saliency(s, "sign"), s.sign())
    assert normalize_saliency(s, "none") is s


class InPlace(nn.Module):
    """Normalises its input in place, as networks from before torchvision's transforms do."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x.sub_(0.4).div_(0.2))


def test_a_network_that_changes_its_input_in_place_gets_a_copy():
    model, x = small_network(), images(3)
    before = x.clone()
    s, logits = saliency(InPlace(model), x)
    assert torch.equal(x, before)
    expected, expected_logits = saliency(model, (x - 0.4) / 0.2)
    torch.testing.assert_close(logits, expected_logits)
    torch.testing.assert_close(s, expected / 0.2)


class TokenStem(nn.Module):
    """Convolution and BatchNorm, then tokens, as LeViT's stem: the gradient comes back as channels last."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).flatten(2).transpose(1, 2).mean(1))


@pytest.mark.parametrize("kind", [None, AttackKind.EQ3])
def test_a_single_image_gets_the_gradient_that_it_gets_among_others(kind):
    """PyTorch's own gradient of this network is wrong for a batch of one, on the CPU, in eval mode."""
    model, x = randomize_batchnorm(TokenStem()).eval(), images(2) * 0.5 + 0.25
    if kind is None:
        alone, together = (saliency(model, some)[0] for some in (x[:1], x))
    else:
        space = InputSpace(mean=(0.0,) * 3, std=(1.0,) * 3)
        labels = torch.tensor([1, 2])
        alone, together = (perturb(model, x[:n], labels[:n], Attack(kind), space) - x[:n] for n in (1, 2))
    torch.testing.assert_close(alone, together[:1])
    exact, _ = saliency(fold_batchnorm(model), x)
    if kind is None:
        torch.testing.assert_close(together, exact)
