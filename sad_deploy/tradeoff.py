"""Table 4 of the paper for one network: η against clean accuracy and accuracy under a fast attack.

One run over the calibration batches gives Φ1 for every η. Each is attacked by APGD on the cross-entropy, few
steps from one start, in two ways: through both passes with S held constant, and on the first pass alone, and
what that gives is shown to both. An image counts as robust if both fail: the second way finds what the
defence only hides. A quick look at the course of η, not the worst case: `evaluate` attacks the exported file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sad_runtime.choices import Way
from sad_runtime.errors import UserError
from sad_runtime.labelled import Share
from sad_runtime.manifest import InputSpace

from .batch_checks import Batch
from .calibration import CalibrationRun
from .calibration_job import batches_of, check_labels, settings_of
from .classifier import SADClassifier, standardized
from .eta_grid import defended, grid_for
from .evaluation.attacks import Apgd, Problem
from .evaluation.losses import Array
from .evaluation.threat import Threat
from .evaluation.work import PIECE, Images
from .preparation import Preparation
from .progress import Report
from .recipe import Recipe, Update
from .saliency import evaluating, input_gradient, logits_of
from .sweep import CalibrationSettings

BOTH_PASSES, FIRST_PASS = "both passes, S constant", "first pass, transferred"
"""The ways of the attack."""

_EVERY = 2
"""Which η of the grid that follows the network are tried; all of them differ little from their neighbours."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One η.

    Attributes:
        eta: η; 0 is recalibration alone.
        grey_levels: How far saliency moves a pixel of these images on average, of 255 levels.
        clean: Right answers of the defence, without an attack.
        alone: Those left by each way of the attack.
        worst: Those left by both: per image, the worse of them.
    """

    eta: float
    grey_levels: float
    clean: Share
    alone: dict[str, Share]
    worst: Share


@dataclasses.dataclass(frozen=True)
class Tradeoff:
    """The course of η, and everything that its figures depend on.

    Attributes:
        points: By ascending η.
        clean: Of Φ0 alone, the network before calibration.
        undefended: What the same attack on Φ0 itself leaves.
        threat: What the attack may change.
        steps: Of the attack.
        seed: Of its starts.
        update: On what the BatchNorm statistics were computed.
        batches: How many of them.
        batch_size: Images in each.
    """

    points: tuple[Point, ...]
    clean: Share
    undefended: Share
    threat: Threat
    steps: int
    seed: int
    update: Update
    batches: int
    batch_size: int

    @property
    def attack(self) -> str:
        """Which one, in words."""
        return f"APGD on the cross-entropy, {self.steps} steps, one start"


class Network:
    """A network under attack: pixels in, logits and gradients of them out, in NumPy.

    Args:
        model: From the network's input space to logits, with a graph of their gradient.
        space: Pixels to network input.
    """

    def __init__(self, model: nn.Module, space: InputSpace) -> None:
        self._model, self._space = model, space
        parameter = next(model.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._std = np.asarray(space.std, np.float32).reshape(-1, 1, 1)
        self.num_classes = 0

    def of_label(self, images: Array, labels: Array) -> tuple[Array, Array]:
        """Logits (N, K) of pixels (N, C, H, W), and the gradient of the cross-entropy by them."""
        targets = torch.from_numpy(labels).to(self._device)
        return self._gradient(images, lambda z: F.cross_entropy(z, targets.expand(len(z)), reduction="none"))

    def of_cotangent(
        self, images: Array, cotangents: Array | Callable[[Array], Array]
    ) -> tuple[Array, Array]:
        """Logits, and the gradient of their product with (N, K), or with what a function makes of them."""

        def product(z: Tensor) -> Tensor:
            given = cotangents(z.detach().cpu().numpy()) if callable(cotangents) else cotangents
            return (z * torch.as_tensor(given, dtype=z.dtype, device=z.device)).sum(1)

        return self._gradient(images, product)

    def _gradient(self, images: Array, objective: Callable[[Tensor], Tensor]) -> tuple[Array, Array]:
        gradient, logits = input_gradient(self._model, self._input(images), objective)
        self.num_classes = logits.shape[1]
        return logits.cpu().numpy(), gradient.cpu().numpy() / self._std

    def __call__(self, images: Array) -> Array:
        """Logits (N, K) of pixels (N, C, H, W)."""
        with torch.no_grad(), evaluating(self._model):
            found: Array = logits_of(self._model, self._input(images)).cpu().numpy()
        return found

    def _input(self, images: Array) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self._device, self._dtype)
        return standardized(pixels, self._space)


def tradeoff(
    model: nn.Module,
    batches: Iterable[Batch],
    images: Images,
    settings: CalibrationSettings,
    *,
    threat: Threat,
    etas: Sequence[float] | None = None,
    update: Update = Update.SALIENT,
    steps: int = 20,
    seed: int = 0,
    report: Report | None = None,
    batch_count: int = 0,
) -> Tradeoff:
    """Calibrate for every η and attack each.

    Args:
        model: Φ0; not modified.
        batches: For calibration, as in :func:`sad_deploy.calibration.calibrate`.
        images: Others, labelled, to measure on.
        settings: Everything about the calibration but η.
        threat: What the attack may change.
        etas: η to try; None for some that follow the network. 0 is always tried.
        update: On what the statistics are computed.
        steps: Of APGD.
        seed: Of its starts.
        report: Told of every batch and of every piece of images.
        batch_count: How many batches there are, for ``report``.

    Returns:
        The course of η.

    Raises:
        UserError: As ``calibrate``; or there are no images.
    """
    if not len(images):
        raise UserError("there are no images to attack", hint="hold some out, or give --val-data")
    report = report or _silent
    run = _Course(model, settings, etas, update)
    for batch in batches:
        run.add(batch)
        report("calibrating", run.batches, batch_count)
        if update is Update.NONE:  # one batch is enough to see S
            break
    channels = images.pixels.shape[1]
    space = settings.input_space or InputSpace((0.0,) * channels, (1.0,) * channels)
    look = _Look(images, threat, steps, seed, space, report, networks=1 + len(run.etas))
    clean, broken = look.at(Network(model, space), {FIRST_PASS: Network(model, space)})
    points = [look.point(eta, phi1, settings) for eta, phi1 in run.networks()]
    return Tradeoff(
        points=tuple(points),
        clean=clean,
        undefended=_left(broken[FIRST_PASS]),
        threat=threat,
        steps=steps,
        seed=seed,
        update=update,
        batches=0 if update is Update.NONE else run.batches,
        batch_size=run.batch_size,
    )


class _Course:
    """The networks of all η."""

    def __init__(
        self, model: nn.Module, settings: CalibrationSettings, etas: Sequence[float] | None, update: Update
    ) -> None:
        self.model, self.update = model, update
        self.etas: tuple[float, ...] = ()
        self._settings, self._given = settings, etas
        self._run = CalibrationRun(model, self._grid, settings)

    def _grid(self, s0: Tensor, space: InputSpace) -> Sequence[float]:
        found = self._given or grid_for(s0, space, self._settings.normalization)[1::_EVERY]
        self.etas = tuple(sorted({0.0, *found}))
        return self.etas if self.update is Update.SALIENT else (0.0,)

    def add(self, batch: Batch) -> None:
        self._run.add(batch)

    @property
    def batches(self) -> int:
        return self._run.sweep.batches

    @property
    def batch_size(self) -> int:
        return self._run.sweep.batch_size

    def networks(self) -> Iterator[tuple[float, nn.Module]]:
        """Each η with its Φ1, which the next one changes."""
        if self.update is Update.NONE:
            yield from ((eta, self.model) for eta in self.etas)
            return
        sweep = self._run.finish()
        for eta in self.etas:
            yield eta, sweep.model_at(eta if self.update is Update.SALIENT else 0.0)


@dataclasses.dataclass
class _Look:
    """One attack on the images, in every way."""

    images: Images
    threat: Threat
    steps: int
    seed: int
    space: InputSpace
    report: Report
    networks: int
    done: int = 0

    def point(self, eta: float, phi1: nn.Module, settings: CalibrationSettings) -> Point:
        chosen: dict[str, Any] = {"normalization": settings.normalization, "clip": settings.clip}
        judged = SADClassifier(phi1, eta=eta, **chosen)
        attacked = SADClassifier(phi1, eta=eta, **chosen, differentiable=Way.CONSTANT)
        ways = {BOTH_PASSES: Network(attacked, self.space), FIRST_PASS: Network(phi1, self.space)}
        clean, broken = self.at(Network(judged, self.space), ways)
        moved = 0.0
        for piece in self._pieces():
            pixels = torch.from_numpy(self.images.pixels[piece])
            like = next(phi1.parameters())
            _, levels = defended(
                judged, standardized(pixels.to(like.device, like.dtype), self.space), self.space
            )
            moved += levels * len(pixels) / len(self.images)
        alone = {way: _left(each) for way, each in broken.items()}
        return Point(eta, moved, clean, alone, _left(np.logical_or(*broken.values())))

    def at(self, victim: Network, ways: dict[str, Network]) -> tuple[Share, dict[str, Array]]:
        """Right answers without an attack, and which images (N,) each way breaks."""
        right: list[Array] = []
        broken: dict[str, list[Array]] = {way: [] for way in ways}
        for piece in self._pieces():
            pixels, labels = self.images.pixels[piece], self.images.labels[piece]
            right.append(victim(pixels).argmax(1) == labels)
            for way, source in ways.items():
                direct = way == BOTH_PASSES or len(ways) == 1
                starts = [np.random.default_rng([self.seed, i]) for i in piece.tolist()]
                problem = Problem(pixels, labels, self.threat, victim, starts)
                search = Apgd(source, steps=self.steps, direct=direct).run(problem)
                broken[way].append(search.broken | ~right[-1])
            self.done += 1
            self.report("attacking", self.done, self.networks * -(-len(self.images) // PIECE))
        clean = np.concatenate(right)
        return Share(int(clean.sum()), len(clean)), {w: np.concatenate(each) for w, each in broken.items()}

    def _pieces(self) -> Iterator[Array]:
        for start in range(0, len(self.images), PIECE):
            yield np.arange(start, min(start + PIECE, len(self.images)))


def _silent(*_: object) -> None:
    """Nobody asked how far it is."""


def _left(broken: Array) -> Share:
    return Share(int((~broken).sum()), len(broken))


@dataclasses.dataclass(frozen=True)
class Measured:
    """Which images a tradeoff was measured on.

    Attributes:
        source: As the user gave it.
        split: ``test``, ``held-out`` or ``validation``.
    """

    source: str
    split: str


def run(
    recipe: Recipe,
    preparation: Preparation,
    *,
    threat: Threat,
    update: Update,
    count: int,
    steps: int,
    report: Report,
) -> tuple[Tradeoff, Measured]:
    """Read the images, calibrate and attack.

    Args:
        recipe: What was asked for.
        preparation: What :func:`~sad_deploy.preparation.prepare` made of it.
        threat: What the attack may change.
        update: On what the statistics are computed.
        count: Most images to attack, none of them calibrated on.
        steps: Of APGD.
        report: Told how far it is.

    Raises:
        UserError: There are no labelled images besides those that are calibrated on.
    """
    data = preparation.data.load(
        preparation.preprocessing,
        calibration=preparation.batches * recipe.batch_size,
        held_out=count,
        seed=recipe.seed,
    )
    others = data.held_out if data.test is None else data.test
    if others.labels is None:
        raise UserError(
            f"{data.name} has no labels, and accuracy under attack needs them", hint="one folder a class"
        )
    check_labels(preparation, data, report)
    some = others.take(np.arange(min(count, len(others))))
    assert some.labels is not None
    found = tradeoff(
        preparation.model,
        batches_of(recipe, preparation, data),
        Images(some.images / np.float32(255), some.labels),
        settings_of(recipe, preparation),
        threat=threat,
        etas=recipe.eta_grid,
        update=update,
        steps=steps,
        seed=recipe.seed,
        report=report,
        batch_count=preparation.batches,
    )
    split = "test" if data.test is not None else "held-out" if data.validation is None else "validation"
    return found, Measured(data.validation or data.name, split)
