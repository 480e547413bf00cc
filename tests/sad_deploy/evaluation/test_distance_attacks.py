"""C&W, ZOO and One Pixel against closed forms and exhaustive search; Square and RayS in L2."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pyautoattack.square import SquareAttack

from sad_deploy.calibrated import load_base
from sad_deploy.classifier import Standardize
from sad_deploy.evaluation.attacks import CarliniWagner, OnePixel, Problem, RayS, Search, Square, Zoo
from sad_deploy.evaluation.evaluate import DEFENDED, UNDEFENDED
from sad_deploy.evaluation.oracles import Counts
from sad_deploy.evaluation.threat import ANYWHERE, Threat, lengths
from sad_runtime.bundle import Bundle
from sad_runtime.choices import Norm

from .conftest import Digits
from .test_attacks import problem

Array = np.ndarray

COUNT, SIDE = 24, 6


class Linear:
    """Two classes, z = (w·x + b, 0): the distance to the boundary is (w·x + b) / ‖w‖."""

    num_classes = 2

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.weight = rng.normal(size=(1, SIDE, SIDE))
        self.bias = 0.0
        self.asked = 0

    def victim(self, images: Array) -> Array:
        self.asked += len(images)
        ahead = (images.astype(np.float64) * self.weight).sum((1, 2, 3)) + self.bias
        return np.stack([ahead, np.zeros_like(ahead)], 1)

    def of_label(self, images: Array, labels: Array) -> tuple[Array, Array]:
        raise NotImplementedError

    def of_cotangent(
        self, images: Array, cotangents: Array | Callable[[Array], Array]
    ) -> tuple[Array, Array]:
        logits = self.victim(images)
        seed = cotangents(logits) if callable(cotangents) else cotangents
        return logits, seed[:, :1, None, None] * self.weight[None]


def linear_problem(seed: int = 0) -> tuple[Linear, Problem, Array]:
    """Images near grey, so that no pixel meets black or white on the shortest way; and their distances."""
    model, rng = Linear(seed), np.random.default_rng(seed)
    images = rng.uniform(0.45, 0.55, (COUNT, 1, SIDE, SIDE)).astype(np.float32)
    model.bias = 0.3 - float((images * model.weight).sum((1, 2, 3)).min())
    margins = model.victim(images)[:, 0]
    labels = np.zeros(COUNT, np.int64)
    rngs = [np.random.default_rng([seed, i]) for i in range(COUNT)]
    return model, Problem(images, labels, ANYWHERE, model.victim, rngs), margins


def distances(search: Search) -> Array:
    return lengths(search.adversarial - search.problem.images)


def test_cw_finds_the_distance_to_the_boundary_of_a_linear_classifier() -> None:
    model, task, margins = linear_problem()
    least = margins / np.linalg.norm(model.weight)
    found = CarliniWagner(model, constant=5.0, steps=800, learning_rate=0.003).run(task)
    assert found.broken.all()
    assert (distances(found) >= least * (1 - 1e-4)).all()
    np.testing.assert_allclose(distances(found), least, rtol=0.02)


@pytest.mark.parametrize("constant", [0.02, 0.03, 0.05, 0.2])
def test_the_constant_of_cw_is_the_weight_of_the_margin(constant: float) -> None:
    """‖δ‖² + c·(m + w·δ) is least at δ = −c·w/2: it fools where c·‖w‖²/2 exceeds the margin m, only there."""
    model, task, margins = linear_problem()
    reach = constant * float((model.weight**2).sum()) / 2
    broken = CarliniWagner(model, constant, steps=1500, learning_rate=0.003).run(task).broken
    sure = np.abs(reach / margins - 1) > 0.1  # Adam swings about the least a little
    assert sure.sum() > COUNT // 2
    np.testing.assert_array_equal(broken[sure], (reach > margins)[sure])


def test_cw_keeps_to_a_threat_where_there_is_one() -> None:
    model, task, margins = linear_problem()
    least = margins / np.linalg.norm(model.weight)
    threat = Threat(float(np.median(least)) * 1.1, Norm.L2)
    bounded = Problem(task.images, task.labels, threat, task.victim, task.rngs)
    found = CarliniWagner(model, constant=5.0, steps=400).run(bounded)
    assert (
        found.broken[least < threat.epsilon * 0.95].all() and not found.broken[least > threat.epsilon].any()
    )


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_cw_goes_as_far_as_its_confidence_asks(confidence: float) -> None:
    model, task, _ = linear_problem()
    seen = []

    def victim(images: Array) -> Array:
        logits = model.victim(images)
        seen.append(logits[:, 0].min())
        return logits

    task = Problem(task.images, task.labels, ANYWHERE, victim, task.rngs)
    CarliniWagner(model, 5.0, 400, confidence=confidence).run(task)
    assert min(seen) < -0.9 * confidence
    assert min(seen) > -confidence - 1.5


def test_zoo_finds_the_distance_too_from_scores_alone() -> None:
    model, task, margins = linear_problem()
    least = margins / np.linalg.norm(model.weight)
    found = Zoo(queries=9000, constant=0.01, searches=6, coordinates=36, learning_rate=0.01).run(task)
    assert found.broken.all()
    assert (distances(found) >= least * (1 - 1e-4)).all()
    assert np.median(distances(found) / least) < 1.1


@pytest.mark.parametrize("queries", [1, 100, 1001])
def test_zoo_asks_no_more_than_allowed(queries: int) -> None:
    model, task, _ = linear_problem()
    model.asked = 0
    Zoo(queries).run(task)
    assert model.asked <= COUNT * queries


def exhaustive(task: Problem, levels: int) -> Array:
    """Which images some pixel at one of some grey levels fools."""
    _, _, height, width = task.images.shape
    fooled = np.zeros(len(task), bool)
    for i, image in enumerate(task.images):
        candidates = np.repeat(image[None], height * width * levels, 0)
        each = np.arange(len(candidates))
        where, level = each // levels, each % levels
        candidates[each, 0, where // width, where % width] = level / (levels - 1)
        fooled[i] = (task.victim(candidates).argmax(1) != task.labels[i]).any()
    return fooled


def test_one_pixel_finds_what_trying_every_pixel_finds(digits: Digits) -> None:
    """Of images half way between two digits. All that is tried are 256 pixels × 9 levels."""
    whole = problem(digits, UNDEFENDED, ANYWHERE, count=24)
    images = (whole.images + np.roll(whole.images, 1, 0)) / 2
    labels = whole.victim(images).argmax(1)
    task = Problem(images, labels, ANYWHERE, whole.victim, whole.rngs)
    truth = exhaustive(task, 9)
    found = OnePixel(population=100, generations=7).run(task)
    changed = (found.adversarial != task.images).any(1).sum((1, 2))
    assert set(changed) <= {0, 1} and (changed[found.broken] <= 1).all()
    assert 0 < truth.sum() < len(truth)
    assert found.broken[truth].mean() >= 0.75
    assert found.broken.sum() <= truth.sum() + 1


def test_one_pixel_asks_what_it_says(digits: Digits) -> None:
    task = problem(digits, DEFENDED, ANYWHERE, count=3)
    found = OnePixel(population=20, generations=4).run(task)
    most = 20 * 5 * 3
    asked = task.victim.counts.forward  # type: ignore[attr-defined]
    assert asked == most if not found.broken.any() else 20 <= asked <= most


@pytest.mark.parametrize("kind", ["cw", "zoo", "onepixel"])
def test_a_neighbour_changes_nothing(digits: Digits, kind: str) -> None:
    source = digits.subjects[DEFENDED].sources["constant"].open(Counts())
    attack = {
        "cw": CarliniWagner(source, 10.0, 20), "zoo": Zoo(300), "onepixel": OnePixel(20, 4),
    }[kind]  # fmt: skip
    whole = attack.run(problem(digits, DEFENDED, ANYWHERE, count=6))
    task = problem(digits, DEFENDED, ANYWHERE, count=6)
    last = Problem(task.images[5:], task.labels[5:], task.threat, task.victim, task.rngs[5:])
    alone = attack.run(last)
    assert alone.broken[0] == whole.broken[5]
    np.testing.assert_allclose(alone.adversarial[0], whole.adversarial[5], atol=1e-4)


@pytest.mark.parametrize("kind", [RayS, Square])
def test_what_is_found_in_l2_is_allowed_and_fools(digits: Digits, kind: type) -> None:
    threat = Threat(1.5, Norm.L2)
    task = problem(digits, DEFENDED, threat, count=16)
    found = kind(400).run(task)
    assert threat.allows(found.adversarial, task.images).all() and found.broken.any()
    assert (task.victim(found.adversarial[found.broken]).argmax(1) != task.labels[found.broken]).all()


@pytest.mark.slow
def test_square_in_l2_leaves_what_the_published_one_leaves(digits: Digits) -> None:
    base = load_base(Bundle.open(digits.bundle))
    assert base is not None
    space = Bundle.open(digits.bundle).manifest.input_space
    model = torch.nn.Sequential(Standardize(space.mean, space.std), base).eval()
    x, y = torch.from_numpy(digits.images.pixels), torch.from_numpy(digits.images.labels)
    theirs, ours = [], []
    for seed in range(3):
        attack = SquareAttack(
            model, norm="L2", eps=0.6, n_queries=500, n_restarts=1, p_init=0.8, resc_schedule=True,
            seed=seed, device="cpu",
        )  # fmt: skip
        found = attack.perturb(x, y)
        with torch.no_grad():
            theirs.append((model(found).argmax(1) == y).sum().item())
        task = problem(digits, UNDEFENDED, Threat(0.6, Norm.L2), seed)
        ours.append(int((~Square(500).run(task).broken).sum()))
    assert 3 < np.mean(theirs) < 45, "a threat at which nothing or everything breaks compares nothing"
    assert abs(np.mean(ours) - np.mean(theirs)) <= 3, (ours, theirs)
