"""sad-deploy tradeoff: the course of η, its ablations, and that no figure comes without its conditions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sad_deploy import SADClassifier, calibrate
from sad_deploy.attack_config import Attack, AttackKind
from sad_deploy.calibration import CalibrationSettings
from sad_deploy.classifier import standardized
from sad_deploy.cli import main
from sad_deploy.data import training_batches
from sad_deploy.data.digits import digits_splits
from sad_deploy.evaluation.threat import Threat
from sad_deploy.evaluation.work import Images
from sad_deploy.models import build_model
from sad_deploy.models.digits import MEAN, STD, digits_state_dict
from sad_deploy.recipe import Update
from sad_deploy.tradeoff import BOTH_PASSES, FIRST_PASS, Network, tradeoff
from sad_runtime.errors import UserError
from sad_runtime.manifest import InputSpace

SPACE = InputSpace(MEAN, STD)
SETTINGS = CalibrationSettings(attack=Attack(AttackKind.FGSM), input_space=SPACE)
QUICK = ["--batches", "2", "--attack", "fgsm", "--images", "20", "--test-steps", "5", "--eta-grid", "0.3"]


@pytest.fixture(scope="module")
def phi0() -> torch.nn.Module:
    model = build_model("digits", 10)
    model.load_state_dict(digits_state_dict())
    return model


@pytest.fixture(scope="module")
def images() -> Images:
    some = digits_splits()[2].take(np.arange(40))
    return Images(some.images / np.float32(255), some.labels)


def batches():
    return training_batches(digits_splits()[0], batch_size=64, batches=3, seed=0)


def course(phi0, images, *, etas=(0.3, 1.0), epsilon=0.03, **options):
    return tradeoff(phi0, batches(), images, SETTINGS, threat=Threat(epsilon), etas=etas, steps=10, **options)


def right(model, images: Images) -> int:
    x = standardized(torch.from_numpy(images.pixels), SPACE)
    with torch.no_grad():
        return int((model(x).argmax(1).numpy() == images.labels).sum())


def test_each_eta_is_calibrated_as_it_would_be_alone(phi0, images):
    found = course(phi0, images)
    assert [point.eta for point in found.points] == [0, 0.3, 1.0]
    assert found.clean.count == right(phi0, images)
    for point in found.points:
        alone = calibrate(phi0, batches(), eta=point.eta, attack=SETTINGS.attack, input_space=SPACE)
        assert point.clean.count == right(SADClassifier(alone.model, eta=point.eta), images)
        assert point.worst.count <= min(share.count for share in point.alone.values())
        assert max(share.count for share in point.alone.values()) <= point.clean.count
    assert found.points[0].grey_levels == 0 < found.points[1].grey_levels < found.points[2].grey_levels


def test_the_attack_breaks_images_and_a_larger_epsilon_more(phi0, images):
    small, large = (course(phi0, images, etas=(0.3,), epsilon=epsilon) for epsilon in (0.02, 0.1))
    assert large.undefended.count < small.undefended.count <= small.clean.count
    assert large.points[1].worst.count < small.points[1].worst.count
    assert large.points[1].worst.count <= 2


def test_without_an_update_the_statistics_are_those_of_the_training(phi0, images):
    found = course(phi0, images, update=Update.NONE)
    for point in found.points:
        assert point.clean.count == right(SADClassifier(phi0, eta=point.eta), images)
    assert (found.batches, found.points[0].clean) == (0, found.clean)
    assert found.points[0].alone[FIRST_PASS] == found.undefended


def test_an_update_without_saliency_serves_every_eta(phi0, images):
    found = course(phi0, images, update=Update.ADVERSARIAL)
    phi1 = calibrate(phi0, batches(), eta=0, attack=SETTINGS.attack, input_space=SPACE).model
    for point in found.points:
        assert point.clean.count == right(SADClassifier(phi1, eta=point.eta), images)


def test_the_gradient_is_by_pixels_and_right_for_a_single_image(phi0, images):
    network = Network(phi0, SPACE)
    few, labels = images.pixels[:3], images.labels[:3]
    logits, gradient = network.of_label(few, labels)
    leaf = torch.from_numpy(few).requires_grad_()
    loss = torch.nn.functional.cross_entropy(phi0(standardized(leaf, SPACE)), torch.from_numpy(labels))
    (expected,) = torch.autograd.grad(3 * loss, leaf)
    np.testing.assert_allclose(gradient, expected.numpy(), rtol=1e-3, atol=1e-6)
    assert np.allclose(network.of_label(few[:1], labels[:1])[1], gradient[:1], rtol=1e-3, atol=1e-6)
    onehot = np.eye(10, dtype=np.float32)[labels]
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    by_hand = network.of_cotangent(few, lambda z: softmax - onehot)[1]
    np.testing.assert_allclose(by_hand, gradient, rtol=1e-3, atol=1e-5)


def test_no_images_are_refused(phi0):
    with pytest.raises(UserError, match="no images"):
        course(phi0, Images(np.empty((0, 1, 16, 16), np.float32), np.empty(0, np.int64)))


def run(*arguments: str) -> int:
    sys.argv = ["sad-deploy", "tradeoff", *arguments]
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_every_output_says_norm_epsilon_images_and_attack(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*QUICK, "--test-epsilon", "0.05", "--plot", "course.svg", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threat_model"] == {"norm": "linf", "epsilon": 0.05}
    assert found["attack"] == {"name": "APGD-CE", "steps": 5, "starts": 1, "worst_case": False}
    assert found["data"] == {"source": "digits", "split": "test", "images": 20}
    assert [point["eta"] for point in found["points"]] == [0, 0.3]
    assert set(found["points"][1]["alone"]) == {BOTH_PASSES, FIRST_PASS}
    assert "not the worst case" in found["note"]
    assert Path("course.svg").stat().st_size > 5000
    assert [path.name for path in tmp_path.iterdir()] == ["course.svg"]


def test_the_table_says_it_too(capsys):
    assert run(*QUICK, "--update", "none", "--norm", "l2", "--test-epsilon", "0.5") == 0
    captured = capsys.readouterr()
    words = " ".join(captured.out.split())
    assert "L2, ε 0.5 · APGD on the cross-entropy, 5 steps, one start · 20 test images of digits" in words
    assert "statistics as they were trained" in words and "not the worst case" in words
    assert "run sad-deploy evaluate" in " ".join(captured.err.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--test-epsilon", "8"], "8/255 if grey levels"),
        (["--plot", "course.txt"], "no plot can be written"),
        (["--data", "flat"], "no labels"),
        (["--eta", "0.3"], "--eta"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(capsys, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "flat"
    folder.mkdir()
    for index, image in enumerate(digits_splits()[0].images[:40]):
        Image.fromarray(image[0]).save(folder / f"{index}.png")
    assert run(*QUICK, "--batch-size", "8", *options) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert said in error and "Traceback" not in error
