from __future__ import annotations

import pytest
import torch

from sad_deploy.classifier import SADClassifier, Standardize, add_saliency, standardized
from sad_deploy.saliency import normalize_saliency, saliency
from sad_runtime.choices import Normalization
from sad_runtime.errors import UserError
from sad_runtime.manifest import InputSpace
from tests.support.networks import images, small_network


@pytest.mark.parametrize("normalization", list(Normalization))
def test_logits_are_those_of_the_input_plus_eta_times_saliency(normalization):
    model, x = small_network(), images(4)
    found = SADClassifier(model, eta=0.7, normalization=normalization).defend(x)
    s, plain = saliency(model, x)
    assert torch.equal(found.saliency, s) and torch.equal(found.plain_logits, plain)
    with torch.no_grad():
        expected = model(x + 0.7 * normalize_saliency(s, normalization))
    torch.testing.assert_close(found.logits, expected)


def test_forward_gives_the_second_pass():
    classifier = SADClassifier(small_network(), eta=3.0)
    x = images(4)
    assert torch.equal(classifier(x), classifier.defend(x).logits)
    assert not torch.allclose(classifier(x), classifier.defend(x).plain_logits)


def test_clip_keeps_every_channel_within_its_bounds():
    x, s = torch.zeros(1, 2, 1, 2), torch.tensor([-9.0, 9.0]).expand(1, 2, 1, 2)
    clipped = add_saliency(x, s, eta=1.0, normalization=Normalization.NONE, clip=((-1, -2), (3, 4)))
    assert clipped[0, :, 0].tolist() == [[-1, 3], [-2, 4]]
    assert add_saliency(x, s, eta=1.0, normalization=Normalization.NONE, clip=(0.0, 1.0))[
        0, 0, 0
    ].tolist() == [0, 1]


def test_answers_do_not_depend_on_the_batch():
    classifier = SADClassifier(small_network(), eta=0.5, normalization="rms", clip=(0.0, 1.0))
    x = images(5)
    alone = torch.cat([classifier(x[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(classifier(x), alone, rtol=1e-4, atol=1e-6)


def test_training_mode_is_refused():
    classifier = SADClassifier(small_network(), eta=0.5)
    classifier.train()
    with pytest.raises(UserError, match="training mode"):
        classifier(images(2))
    classifier.eval()
    classifier.model[1].train()
    with pytest.raises(UserError, match="1 is in training mode"):
        classifier(images(2))


@pytest.mark.parametrize("eta", [-0.1, float("nan"), float("inf")])
def test_an_impossible_eta_is_refused(eta):
    with pytest.raises(UserError, match="eta"):
        SADClassifier(small_network(), eta=eta)


@pytest.mark.parametrize("clip", [(1.0, 0.0), ((0.0, 0.0, 0.0), (1.0, 1.0))])
def test_an_impossible_clip_is_refused(clip):
    with pytest.raises(UserError, match="clip"):
        SADClassifier(small_network(), eta=0.1, clip=clip)


def test_standardize_maps_pixels_and_adds_nothing_to_the_state_dict():
    space = InputSpace(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    module = Standardize(space.mean, space.std)
    x = images(2)
    assert torch.equal(module(x), standardized(x, space))
    torch.testing.assert_close(module(x)[:, 1], (x[:, 1] - 0.2) / 0.25)
    assert not module.state_dict()


def test_a_channel_count_that_differs_from_mean_is_refused():
    with pytest.raises(UserError, match="1 channels, mean and std have 3"):
        standardized(images(2, channels=1), InputSpace((0, 0, 0), (1, 1, 1)))


@pytest.mark.parametrize("way", ["constant", "exact"])
@pytest.mark.parametrize("normalization", ["none", "rms"])
def test_logits_are_the_same_and_can_be_differentiated(way, normalization):
    model, x = small_network(), images(3)
    plain = SADClassifier(model, eta=0.7, normalization=normalization)
    attacked = SADClassifier(model, eta=0.7, normalization=normalization, differentiable=way)
    leaf = x.clone().requires_grad_()
    logits = attacked(leaf)
    torch.testing.assert_close(logits.detach(), plain(x))
    (gradient,) = torch.autograd.grad(logits.sum(), leaf)
    s, _ = saliency(model, x)
    again = x.clone().requires_grad_()
    mixed = add_saliency(again, s, eta=0.7, normalization=Normalization(normalization), clip=None)
    (held,) = torch.autograd.grad(model(mixed).sum(), again)
    if way == "constant":
        torch.testing.assert_close(gradient, held)
    with torch.no_grad():
        torch.testing.assert_close(attacked(x), plain(x))


def test_through_the_saliency_the_gradient_is_the_slope():
    """By central differences in float64, on a network whose saliency changes."""
    torch.manual_seed(0)
    smooth = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3)
    )
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    found = {}
    for way in ("constant", "exact"):
        classifier = SADClassifier(smooth.double(), eta=3.0, differentiable=way)
        leaf = x.clone().requires_grad_()
        (found[way],) = torch.autograd.grad(classifier(leaf)[:, 0].sum(), leaf)
    direction = torch.randn_like(x)
    with torch.no_grad():
        ends = [classifier(x + sign * 1e-5 * direction)[:, 0].sum() for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / 2e-5
    torch.testing.assert_close((found["exact"] * direction).sum(), slope, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found["constant"], found["exact"], rtol=1e-2)


@pytest.mark.parametrize("way", ["plain", "sideways"])
def test_a_wrong_way_is_said(way):
    with pytest.raises(UserError, match="way"):
        SADClassifier(small_network(), eta=0.5, differentiable=way)
