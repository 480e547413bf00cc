"""A network in memory becomes a bundle, is exported, and answers as PyTorch does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import sad_deploy
from sad_deploy import Attack, AttackKind, SADClassifier
from sad_deploy.calibrated import load_base
from sad_deploy.classifier import standardized
from sad_deploy.in_memory import torch_reference
from sad_runtime import Classifier
from sad_runtime.bundle import Bundle
from sad_runtime.errors import UserError
from sad_runtime.manifest import InputSpace
from tests.support.networks import batches_of, changed, images, randomize_batchnorm, small_network, state

SPACE = InputSpace(mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))
FGSM = Attack(AttackKind.FGSM)
NAMES = ["a", "b", "c", "d", "e"]
FACTORY = """
from tests.support.networks import small_network
def small(num_classes): return small_network(classes=num_classes)
"""


@pytest.fixture
def calibration():
    return sad_deploy.calibrate(
        small_network(), batches_of(3), eta=0.3, attack=FGSM, input_space=SPACE, clip=SPACE.pixel_range
    )


@pytest.mark.parametrize("model", [None, "small_factory:small"])
def test_it_is_exported_and_answers_as_pytorch_does(calibration, model, tmp_path, monkeypatch):
    (tmp_path / "small_factory.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    samples = torch.round(images(20, seed=9) * 255) / 255
    bundle = calibration.save("mine", samples=samples, classes=NAMES, model=model)
    assert bundle.manifest.defence.clip and bundle.manifest.defence.eta == 0.3
    sad_deploy.export("mine")
    with Classifier.load("mine") as classifier:
        found = classifier.predict(samples.numpy())
    reference = SADClassifier(calibration.model, eta=0.3, clip=SPACE.pixel_range)
    expected = reference.defend(standardized(samples, SPACE))
    np.testing.assert_allclose(found.logits, expected.logits.numpy(), rtol=1e-3, atol=1e-4)

    given = None if model else small_network(seed=5)
    phi1, manifest = sad_deploy.load_calibrated("mine", model=given)
    assert changed(state(calibration.model), phi1) == set() and manifest.classes == tuple(NAMES)
    sad_deploy.export("mine", options=sad_deploy_options())
    assert len(Bundle.open("mine").manifest.graphs) > len(bundle.manifest.graphs)


def sad_deploy_options():
    from sad_export import GraphOptions

    return GraphOptions(precision="fp16", allow_inaccurate=True)


class TokenStem(nn.Module):
    """As LeViT's: for a batch of one, PyTorch's own gradient of it is wrong."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(torch.tanh(self.norm(self.conv(x)).flatten(2).transpose(1, 2)).mean(1))


def test_a_right_graph_is_not_blamed_for_pytorchs_gradient_of_a_single_image(tmp_path):
    """17 images are compared in a batch of 16 and one of one."""
    found = sad_deploy.calibrate(
        randomize_batchnorm(TokenStem()).eval(), batches_of(3), eta=0.3, attack=FGSM, input_space=SPACE
    )
    bundle = found.save(tmp_path / "mine", samples=images(17))
    pixels = images(17).numpy()
    whole = torch_reference(found.model, bundle.manifest, pixels)
    alone = torch_reference(found.model, bundle.manifest, pixels[16:])
    np.testing.assert_allclose(whole["saliency"][16:], alone["saliency"], rtol=1e-6)
    graph = SADClassifier(sad_deploy.fold_batchnorm(found.model), eta=0.3)
    expected = graph.defend(standardized(images(17), SPACE)).saliency
    np.testing.assert_allclose(whole["saliency"], expected.numpy(), rtol=1e-4, atol=1e-6)
    assert sad_deploy.export(bundle).graphs[0].shortfalls == ()


def test_the_base_is_the_network_that_was_given(calibration, tmp_path, monkeypatch):
    assert changed(state(small_network()), calibration.base()) == set()
    (tmp_path / "small_factory.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    bundle = calibration.save("mine", samples=images(4), model="small_factory:small")
    assert changed(state(small_network()), load_base(bundle)) == set()


def test_a_network_that_nobody_can_build_is_asked_for(calibration, tmp_path):
    calibration.save(tmp_path / "mine", samples=(images(4), torch.tensor([0, 1, 2, 3])))
    with pytest.raises(UserError, match=r"given in memory.*\(Sequential\)"):
        sad_deploy.load_calibrated(tmp_path / "mine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": images(1)}, "at least two images"),
        ({"samples": images(4) * 255}, "pixels are in"),
        ({"samples": images(4), "model": "resnet18"}, "another network each time|resnet18"),
        ({"samples": images(4), "classes": ["a", "b"]}, "2 class names for 5 logits"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(calibration, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        calibration.save(tmp_path / "mine", **options)
    assert not (tmp_path / "mine").exists()


def test_a_clip_that_is_not_the_pixel_range_is_refused(tmp_path):
    found = sad_deploy.calibrate(small_network(), batches_of(2), eta=0.3, attack=FGSM, clip=(0.1, 0.9))
    with pytest.raises(UserError, match="not the range that pixels can have"):
        found.save(tmp_path / "mine", samples=images(4))
