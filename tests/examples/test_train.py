"""examples/train.py: each method's loss is its formula, and a training that was cut off ends the same."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from sad_deploy.data import ImageSet
from sad_deploy.data.digits import digits_splits
from sad_deploy.models import build_model
from sad_deploy.models.cifar import MEAN as CIFAR_MEAN
from sad_deploy.models.cifar import STD as CIFAR_STD
from sad_deploy.models.digits import MEAN, STD, digits_state_dict
from sad_runtime.errors import UserError
from sad_runtime.manifest import InputSpace

EXAMPLES = Path(__file__).parents[2] / "examples"
METHODS = ("natural", "pgd", "trades", "fast", "free")
EPSILON = 0.1


@pytest.fixture
def train(monkeypatch):
    """The script as a module; the threads that it sets are set back."""
    monkeypatch.syspath_prepend(EXAMPLES)
    threads = torch.get_num_threads()
    yield importlib.import_module("train")
    torch.set_num_threads(threads)


@pytest.fixture
def few() -> ImageSet:
    """Two batches of digits."""
    return digits_splits()[0].take(np.arange(128))


def drawn(*shape: int) -> torch.Tensor:
    """What chance starts an attack with."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(5))


def cross_entropy(logits, labels):
    return -(logits - logits.logsumexp(1, keepdim=True))[torch.arange(len(labels)), labels].mean()


def divergence(p, logits):
    q = logits.softmax(1)
    return (p * (p / q).log()).sum(1).mean()


class Naive:
    """The formulas once more, one image batch, written out with nothing but autograd."""

    def __init__(self, model, x, y):
        self.model, self.x, self.y = copy.deepcopy(model), x, y

    def f(self, pixels, training=True):
        return self.model.train(training)((pixels - MEAN[0]) / STD[0])

    def climbed(self, at, objective, step):
        at = at.detach().requires_grad_()
        at = at.detach() + step * torch.autograd.grad(objective(at), at)[0].sign()
        return torch.max(torch.min(at, self.x + EPSILON), self.x - EPSILON).clamp(0, 1)

    def natural(self):
        return cross_entropy(self.f(self.x), self.y)

    def pgd(self):
        at = (self.x + EPSILON * (2 * drawn(*self.x.shape) - 1)).clamp(0, 1)
        for _ in range(7):
            at = self.climbed(at, lambda z: cross_entropy(self.f(z, False), self.y), EPSILON / 4)
        return cross_entropy(self.f(at), self.y)

    def trades(self):
        noise = torch.randn(self.x.shape, generator=torch.Generator().manual_seed(5))
        at, p = self.x + 0.001 * noise, self.f(self.x, False).softmax(1).detach()
        for _ in range(10):
            at = self.climbed(at, lambda z: divergence(p, self.f(z, False)), EPSILON * 7 / 31)
        plain = self.f(self.x)
        return cross_entropy(plain, self.y) + 6 * divergence(plain.softmax(1), self.f(at))

    def fast(self):
        at = (self.x + EPSILON * (2 * drawn(*self.x.shape) - 1)).clamp(0, 1)
        at = self.climbed(at, lambda z: cross_entropy(self.f(z), self.y), 1.25 * EPSILON)
        return cross_entropy(self.f(at), self.y)


@pytest.fixture
def learner(train, few):
    model = build_model("digits", 10)
    model.load_state_dict(digits_state_dict(adversarial=True))

    def made(method: str):
        recipe = train.recipe_for(method, "digits")
        space, generator = InputSpace(MEAN, STD), torch.Generator().manual_seed(5)
        return train.Learner(copy.deepcopy(model).train(), space, recipe, generator, epsilon=EPSILON)

    return made


@pytest.mark.parametrize("method", ["natural", "pgd", "trades", "fast"])
def test_the_loss_of_a_method_is_its_formula(train, few, learner, method):
    x, y = few.batch(np.arange(32))
    f = learner(method)
    expected = getattr(Naive(f.model, x, y), method)()
    (loss,) = train.METHODS[method](f, x, y)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    assert f.model.training
    if method != "natural":  # it attacked
        assert loss.item() > 1.5 * Naive(f.model, x, y).natural().item()


def test_free_steps_along_one_gradient_with_weights_and_perturbation(train, few, learner):
    x, y = few.batch(np.arange(32))
    f = learner("free")
    naive = Naive(f.model, x, y)
    optimizer, rate = torch.optim.SGD(f.model.parameters(), lr=0.01), 0.01
    delta, expected = torch.zeros_like(x), []
    for _ in range(2 * 8):  # the perturbation goes on from batch to batch
        delta.requires_grad_()
        parameters = list(naive.model.parameters())
        loss = cross_entropy(naive.f((x + delta).clamp(0, 1)), y)
        *gradients, upward = torch.autograd.grad(loss, [*parameters, delta])
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= rate * gradient
        delta = (delta.detach() + EPSILON * upward.sign()).clamp(-EPSILON, EPSILON)
        expected.append(loss.item())
    found = []
    for _ in range(2):
        for loss in train.METHODS["free"](f, x, y):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    assert found == pytest.approx(expected, rel=1e-2)
    assert expected[1] > 2 * expected[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_training_that_was_cut_off_ends_with_the_same_bits(train, few, tmp_path, method):
    recipe = train.recipe_for(method, "digits", epochs=3)
    space, state = InputSpace(MEAN, STD), tmp_path / "state"
    whole = train.train(recipe, few, space).state_dict()

    def cut(epoch: int, loss: float) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train(recipe, few, space, state=state, report=cut)
    epochs = []
    resumed = train.train(
        recipe, few, space, state=state, resume=True, report=lambda epoch, _: epochs.append(epoch)
    ).state_dict()
    assert epochs == [3]
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert not torch.equal(whole["conv.weight"], digits_state_dict()["conv.weight"])


def test_a_state_of_another_training_is_refused_with_what_differs(train, few, tmp_path):
    recipe, space, state = (
        train.recipe_for("natural", "digits", epochs=1),
        InputSpace(MEAN, STD),
        tmp_path / "s",
    )
    train.train(recipe, few, space, state=state)
    with pytest.raises(UserError, match="was cut off"):
        train.train(recipe, few, space, state=state)
    with pytest.raises(UserError, match="seed 0 there, 1 here"):
        train.train(recipe, few, space, state=state, resume=True, seed=1)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        train.train(recipe, few, space, state=state, resume=True)


def test_the_defaults_write_such_weights_as_the_package_has_the_same_each_time(train, tmp_path):
    for name in ("one", "two"):
        train.main(train.parsed(["--epochs", "1", "--out", str(tmp_path / name)]))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}
    written, shipped = safetensors.torch.load_file(tmp_path / "one"), digits_state_dict()
    assert {n: (t.shape, t.dtype) for n, t in written.items()} == {
        n: (t.shape, t.dtype) for n, t in shipped.items()
    }


def test_adversarial_training_of_the_digits_goes_on_from_the_natural_network(train, tmp_path):
    recipe = train.recipe_for("pgd", "digits", epochs=1)
    training, _, test = digits_splits()
    model = train.train(recipe, training, InputSpace(MEAN, STD))
    assert not torch.equal(model.state_dict()["conv.weight"], digits_state_dict()["conv.weight"])
    assert train.accuracy(model, test, InputSpace(MEAN, STD)) >= 90


@pytest.mark.parametrize("method", ["trades", "fast", "free"])
def test_cifar_networks_train_with_settings_of_the_papers(train, method):
    rng = np.random.default_rng(0)
    images = ImageSet(rng.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8), np.arange(6) % 2)
    papers = train.recipe_for(method, "cifar10:DIR", epochs=1)
    recipe = dataclasses.replace(papers, batch_size=2, steps=1, replays=min(papers.replays, 2))
    losses = []
    space = InputSpace(CIFAR_MEAN, CIFAR_STD)
    model = train.train(
        recipe, images, space, model="cifar-resnet18", report=lambda _, loss: losses.append(loss)
    )
    assert len(losses) == 1 and np.isfinite(losses)
    assert not model.training


def test_images_are_moved_and_mirrored_as_the_recipe_says(train):
    recipe = train.recipe_for("natural", "cifar10:DIR")
    image = torch.arange(1.0, 3 * 32 * 32 + 1).reshape(1, 3, 32, 32)
    found = train.augmented(image.expand(200, -1, -1, -1), recipe, torch.Generator().manual_seed(0))
    padded = F.pad(image, (4, 4, 4, 4))[0]
    corners = {tuple(each[0, 0, :2].tolist()) for each in found}
    allowed = set()
    for y in range(9):
        for x in range(9):
            row = padded[0, y, x : x + 32].tolist()
            allowed |= {(row[0], row[1]), (row[-1], row[-2])}
    assert corners <= allowed
    assert len(corners) > 30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "photos"], "no recipe"),
        (["--epsilon", "8"], "in pixels"),
        (["--epochs", "0"], "at least 1"),
        (["--model", "cifar-resnet18"], "takes no images of 1×16×16"),
        (["--data", "cifar10:nowhere"], "published files"),
    ],
)
def test_what_cannot_be_trained_is_said(train, tmp_path, words, said):
    with pytest.raises(UserError, match=said):
        train.main(train.parsed([*words, "--out", str(tmp_path / "out")]))
    assert not list(tmp_path.iterdir())
