"""Attacks against the published implementation, and against what must hold for any attack."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack

from sad_deploy.calibrated import load_base
from sad_deploy.classifier import Standardize
from sad_deploy.evaluation.attacks import Apgd, Pgd, Problem, RayS, Square
from sad_deploy.evaluation.attacks.apgd import Checkpoints
from sad_deploy.evaluation.evaluate import DEFENDED, UNDEFENDED
from sad_deploy.evaluation.losses import Loss
from sad_deploy.evaluation.oracles import Array, Counts
from sad_deploy.evaluation.threat import Threat
from sad_runtime.bundle import Bundle
from sad_runtime.choices import Norm

from .conftest import Digits

COUNT = 48


def problem(digits: Digits, key: str, threat: Threat, seed: int = 0, count: int = COUNT) -> Problem:
    victim = digits.subjects[key].victim.open(Counts())
    pixels, labels = digits.images.pixels[:count], digits.images.labels[:count]
    rngs = [np.random.default_rng([seed, i]) for i in range(count)]
    return Problem(pixels, labels, threat, victim, rngs)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "epsilon"), [(Norm.LINF, 0.05), (Norm.L2, 0.6)])
@pytest.mark.parametrize("loss", ["cross_entropy", "dlr"])
def test_apgd_leaves_what_autoattacks_leaves(digits: Digits, norm: Norm, epsilon: float, loss: str) -> None:
    """On the undefended network, means over three seeds: within 2 of 48 images."""
    base = load_base(Bundle.open(digits.bundle))
    assert base is not None
    space = Bundle.open(digits.bundle).manifest.input_space
    model = torch.nn.Sequential(Standardize(space.mean, space.std), base).eval()
    x, y = torch.from_numpy(digits.images.pixels), torch.from_numpy(digits.images.labels)
    source = digits.subjects[UNDEFENDED].sources["own"].open(Counts())
    theirs, ours = [], []
    for seed in range(3):
        attack = APGDAttack(
            model, n_iter=50, norm={"linf": "Linf", "l2": "L2"}[norm], eps=epsilon, n_restarts=1,
            loss={"cross_entropy": "ce", "dlr": "dlr"}[loss], seed=seed, device="cpu",
        )  # fmt: skip
        found = attack.perturb(x, y)
        found = found[1] if isinstance(found, tuple) else found
        with torch.no_grad():
            theirs.append((model(found).argmax(1) == y).sum().item())
        task = problem(digits, UNDEFENDED, Threat(epsilon, norm), seed)
        ours.append(int((~Apgd(source, Loss(loss), 50).run(task).broken).sum()))
    assert 0 < np.mean(theirs) < 46, "a threat at which nothing or everything breaks compares nothing"
    assert abs(np.mean(ours) - np.mean(theirs)) <= 2, (ours, theirs)


@pytest.mark.parametrize("kind", ["apgd", "margin", "transfer", "pgd", "rays", "square"])
def test_what_is_found_is_allowed_and_fools_the_file(digits: Digits, kind: str) -> None:
    threat = Threat(0.1)
    task = problem(digits, DEFENDED, threat, count=16)
    sources = digits.subjects[DEFENDED].sources
    constant, plain = (sources[key].open(Counts()) for key in ("constant", "plain"))
    attack = {
        "apgd": Apgd(constant, steps=20),
        "margin": Apgd(constant, Loss("margin", 1), 20),
        "transfer": Apgd(plain, steps=20, direct=False),
        "pgd": Pgd(constant, steps=20),
        "rays": RayS(300),
        "square": Square(300),
    }[kind]
    found = attack.run(task)
    assert threat.allows(found.adversarial, task.images).all()
    assert found.broken.any()
    right = task.victim(found.adversarial).argmax(1) == task.labels
    clean = task.victim(task.images).argmax(1) == task.labels
    np.testing.assert_array_equal(right, ~found.broken | (clean & ~found.broken))


@pytest.mark.parametrize("kind", ["apgd", "rays", "square"])
def test_an_image_is_attacked_alike_whatever_is_beside_it(digits: Digits, kind: str) -> None:
    source = digits.subjects[DEFENDED].sources["constant"].open(Counts())
    attack = {"apgd": Apgd(source, steps=10), "rays": RayS(100), "square": Square(100)}[kind]
    whole = attack.run(problem(digits, DEFENDED, Threat(0.08), count=8))
    task = problem(digits, DEFENDED, Threat(0.08), count=8)
    last = Problem(task.images[7:], task.labels[7:], task.threat, task.victim, task.rngs[7:])
    alone = attack.run(last)
    assert alone.broken[0] == whole.broken[7]
    np.testing.assert_allclose(alone.adversarial[0], whole.adversarial[7], atol=1e-5)


@pytest.mark.parametrize("queries", [1, 57, 200])
@pytest.mark.parametrize("kind", [RayS, Square])
def test_no_more_is_asked_than_allowed(digits: Digits, kind: type, queries: int) -> None:
    task = problem(digits, DEFENDED, Threat(1e-4), count=3)
    kind(queries).run(task)
    assert task.victim.counts.forward <= 3 * queries  # type: ignore[attr-defined]


@pytest.mark.parametrize(("boundary", "asked"), [(0.14, 800), (0.2, 500)])
def test_an_image_whose_boundary_stays_far_is_given_up(boundary: float, asked: int) -> None:
    """Its class changes where the mean of all pixels is higher by the boundary, so no direction is nearer."""
    image = np.full((1, 1, 4, 4), 0.5, np.float32)
    queries = 0

    def victim(images: Array) -> Array:
        nonlocal queries
        queries += len(images)
        rise = images.mean((1, 2, 3)) - 0.5 - boundary
        return np.stack([-rise, rise], 1)

    task = Problem(image, np.zeros(1, np.int64), Threat(0.1), victim, [np.random.default_rng(0)])
    assert not RayS(800).run(task).broken[0]
    assert queries == asked


def test_answers_that_are_not_finite_count_as_fooled(digits: Digits) -> None:
    task = problem(digits, DEFENDED, Threat(0.05), count=4)
    broken = dataclasses.replace(task, victim=lambda images: np.full((len(images), 10), np.nan))
    assert RayS(20).run(broken).broken.all()


def test_gradients_that_are_not_finite_do_not_end_an_attack(digits: Digits) -> None:
    class Sometimes:
        num_classes = 10

        def __init__(self) -> None:
            self.inner = digits.subjects[DEFENDED].sources["constant"].open(Counts())

        def of_label(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            logits, gradient = self.inner.of_label(images, labels)
            gradient[::2] = np.nan
            return logits, gradient

        of_cotangent = None

    task = problem(digits, DEFENDED, Threat(0.1), count=8)
    found = Apgd(Sometimes(), steps=10).run(task)  # type: ignore[arg-type]
    assert np.isfinite(found.adversarial).all()


def test_checkpoints_are_the_papers() -> None:
    """p = 0, 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of 100 steps."""
    checkpoints, reached = Checkpoints(100), []
    for step in range(1, 101):
        if checkpoints.due():
            reached.append(step)
            checkpoints.advance()
    assert reached == [22, 41, 57, 70, 80, 87, 93, 99]
