"""The rules and settings by which examples/train.py trains.

f is the network in train mode, ℓ the cross-entropy, Π the projection onto |δ| ≤ ε and pixels of [0, 1], and s
a method's step:

natural  ℓ(f(x), y).
pgd      ℓ(f(x′), y) with x′ ← Π(x′ + s·sign ∇ℓ) from a random start (Madry et al., 2018).
trades   ℓ(f(x), y) + β·KL(f(x) ‖ f(x′)), where x′ climbs that KL from x + 0.001·N(0, 1) (Zhang et al., 2019).
fast     ℓ(f(x + δ), y) with δ = Π(U(−ε, ε) + s·sign ∇ℓ), s = 1.25 ε: one step (Wong et al., 2020).
free     m updates a batch of ℓ(f(x + δ), y), whose gradient moves δ by ε·sign too; δ goes on from batch to
         batch (Shafahi et al., 2019).

CIFAR is trained with the settings of the papers and of the code published with them, naturally with those of
He et al., 2016. The digits have settings of their own: the papers' rules, one course of the learning rate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sad_deploy.attack_config import Attack, AttackKind
from sad_deploy.attacks import perturb
from sad_deploy.classifier import standardized
from sad_deploy.saliency import input_gradient
from sad_runtime.errors import UserError
from sad_runtime.manifest import InputSpace

BETA = 6.0
"""Weight of the KL divergence in TRADES."""
_START = 0.001
"""Standard deviation of the noise from which TRADES climbs, in pixels."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of a training.

    Attributes:
        method: One of :data:`METHODS`.
        epochs: Passes over the images; with ``free`` each takes ``replays`` updates a batch.
        batch_size: Images in a batch.
        rate: Highest learning rate.
        decay: Weight decay.
        nesterov: Kind of momentum.
        rises: Share of the training in which the rate rises linearly, to fall linearly after it; or None.
        drops: Shares of the training after which the rate is divided by ten.
        shift: Pixels by which an image is moved at most along each axis, at random.
        flips: Whether half of the images are mirrored.
        epsilon: L∞ radius, in pixels of [0, 1].
        steps: Of the attack on a batch.
        step: Size of one, as a part of ε.
        warm_up: Share of the training in which ε grows.
        replays: Updates a batch.
        from_natural: Whether it starts from the package's natural weights.
    """

    method: str = "natural"
    epochs: int = 20
    batch_size: int = 64
    rate: float = 0.1
    decay: float = 5e-4
    nesterov: bool = True
    rises: float | None = 0.3
    drops: tuple[float, ...] = ()
    shift: int = 1
    flips: bool = False
    epsilon: float = 0.1
    steps: int = 1
    step: float = 0.25
    warm_up: float = 0.0
    replays: int = 1
    from_natural: bool = False


_DIGITS = Recipe()
_CIFAR = Recipe(
    epochs=205,
    batch_size=128,
    decay=2e-4,
    nesterov=False,
    rises=None,
    drops=(0.5, 0.75),
    shift=4,
    flips=True,
    epsilon=8 / 255,
)
_PGD = {"method": "pgd", "steps": 7}
_TRADES = {"method": "trades", "steps": 10, "step": 0.007 / 0.031}
_FAST = {"method": "fast", "step": 1.25}
_FREE = {"method": "free", "step": 1.0, "replays": 8}
_EACH: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "natural": ({}, {"epochs": 164, "decay": 1e-4}),
    "pgd": ({**_PGD, "epochs": 60, "warm_up": 1 / 3, "from_natural": True}, _PGD),
    "trades": ({**_TRADES, "epochs": 30}, {**_TRADES, "epochs": 80, "drops": (75 / 80,), "epsilon": 0.031}),
    "fast": ({**_FAST, "epochs": 30}, {**_FAST, "epochs": 15, "rate": 0.2, "decay": 5e-4, "rises": 0.5}),
    "free": ({**_FREE, "epochs": 8}, {**_FREE, "epochs": 25}),
}


def recipe_for(method: str, data: str, **given: Any) -> Recipe:
    """The settings of a method on the digits or on CIFAR, but for what is given.

    Raises:
        UserError: There is no such method, no recipe for such images, or a value is out of range.
    """
    if method not in METHODS:
        raise UserError(f"there is no method {method!r}", hint=f"use {', '.join(METHODS)}")
    digits = data == "digits"
    if not digits and data.partition(":")[0] not in ("cifar10", "cifar100"):
        raise UserError(
            f"--data {data}: there is no recipe for it", hint="digits, cifar10:DIR or cifar100:DIR"
        )
    base, changes = (_DIGITS, _EACH[method][0]) if digits else (_CIFAR, _EACH[method][1])
    recipe = dataclasses.replace(base, **(changes | {k: v for k, v in given.items() if v is not None}))
    if not 0 < recipe.epsilon <= 1:
        raise UserError(f"--epsilon is within (0, 1], in pixels, got {recipe.epsilon:g}", hint="8/255, not 8")
    if recipe.epochs < 1:
        raise UserError(f"--epochs must be at least 1, got {recipe.epochs}")
    return recipe


@dataclasses.dataclass
class Learner:
    """A network in training, and what its method needs beside it.

    Attributes:
        model: From the network's input space to logits.
        space: Pixels to network input.
        recipe: Everything that was decided before.
        generator: Of all that is random after the first weights; on the CPU.
        epsilon: ε at this step.
        delta: δ of ``free``, shaped as a batch.
    """

    model: nn.Module
    space: InputSpace
    recipe: Recipe
    generator: torch.Generator
    epsilon: float = 0.0
    delta: Tensor | None = None

    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits (N, K) of pixels (N, C, H, W), in the mode that the network is in."""
        logits: Tensor = self.model(standardized(pixels, self.space))
        return logits

    @property
    def step(self) -> float:
        """Size of one step of the attack, in pixels."""
        return self.recipe.step * self.epsilon

    def projected(self, moved: Tensor, pixels: Tensor) -> Tensor:
        """Π: within ε of the images, and pixels of [0, 1]."""
        return (pixels + (moved - pixels).clamp(-self.epsilon, self.epsilon)).clamp(0, 1)


def natural(f: Learner, x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """ℓ(f(x), y)."""
    yield F.cross_entropy(f(x), y)


def pgd(f: Learner, x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """ℓ(f(x′), y), x′ by PGD against the network in eval mode."""
    attack = Attack(AttackKind.PGD, epsilon=f.epsilon, steps=f.recipe.steps, step_size=f.step)
    yield F.cross_entropy(f(perturb(f.model, x, y, attack, f.space, generator=f.generator)), y)


def trades(f: Learner, x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """ℓ(f(x), y) + β·KL(f(x) ‖ f(x′)), x′ found against the network in eval mode."""
    near = x + _START * torch.randn(x.shape, generator=f.generator).to(x.device)
    f.model.eval()
    with torch.no_grad():
        p = f(x).softmax(1)
    for _ in range(f.recipe.steps):
        gradient, _ = input_gradient(f.model, standardized(near, f.space), lambda logits: _kl(p, logits))
        near = f.projected(near + f.step * gradient.sign(), x)
    f.model.train()
    plain = f(x)
    yield F.cross_entropy(plain, y) + BETA * _kl(plain.softmax(1), f(near)).mean()


def _kl(p: Tensor, logits: Tensor) -> Tensor:
    """KL(p ‖ softmax(logits)) of each image, (N,)."""
    return F.kl_div(logits.log_softmax(1), p, reduction="none").sum(1)


def fast(f: Learner, x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """ℓ(f(x + δ), y), δ by one step from a random start against the network in train mode."""
    start = f.epsilon * (2 * torch.rand(x.shape, generator=f.generator).to(x.device) - 1)
    moved = f.projected(x + start, x).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(f(moved), y), moved)
    yield F.cross_entropy(f(f.projected(moved.detach() + f.step * gradient.sign(), x)), y)


def free(f: Learner, x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """ℓ(f(x + δ), y), m times: the caller's backward pass gives the gradient of δ besides."""
    for _ in range(f.recipe.replays):
        delta = (torch.zeros_like(x) if f.delta is None else f.delta).requires_grad_()
        yield F.cross_entropy(f((x + delta).clamp(0, 1)), y)
        assert delta.grad is not None  # the caller went backward
        f.delta = (delta.detach() + f.step * delta.grad.sign()).clamp(-f.epsilon, f.epsilon)


METHODS: dict[str, Callable[[Learner, Tensor, Tensor], Iterator[Tensor]]] = {
    "natural": natural,
    "pgd": pgd,
    "trades": trades,
    "fast": fast,
    "free": free,
}
"""Each gives the losses to be stepped along on a batch: x (N, C, H, W) pixels, y (N,) labels."""
