"""The whole of ``sad-deploy calibrate`` after its preparation: images in, Φ1 and figures out."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sad_runtime.errors import UserError

from .accuracy import CleanAccuracy, Comparison, clean_accuracy
from .batch_checks import Batch
from .calibration import calibrate_each
from .classifier import SADClassifier, standardized
from .data import CalibrationData, ImageSet, every_batch, training_batches
from .eta import SCOUTING, EtaChoice, choose_eta
from .eta_grid import defended
from .kept_state import FileKeeper, Keeper, identity_of
from .label_order import check_label_order
from .preparation import Preparation
from .processes import ALONE, Processes
from .progress import Report
from .recipe import Recipe
from .saliency import evaluating, logits_of
from .sweep import Calibration, CalibrationSettings

HELD_OUT_IMAGES = 1000
"""Most images η is chosen on, and clean accuracy reported on."""

LABELS_CHECKED = 512
"""Most images on which labels are compared with predictions beforehand."""

LARGE_DROP = 5.0
"""Points of clean accuracy whose loss deserves a loud warning."""

LEAST_TEST_IMAGES = 200
"""With as many held-out images twice, one half chooses η and the other is reported on."""

_EVALUATION_BATCH = 32
"""Small, so that progress is seen while many η are measured."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a calibration gave.

    Attributes:
        calibration: Φ1.
        choice: The sweep, if η was chosen.
        before: Clean accuracy of Φ0 alone.
        first_pass: Of Φ1 alone, on the same images: recalibrated, without saliency.
        after: Of the defended Φ1.
        grey_levels: How far saliency moves a pixel of them on average, of 255 levels.
        split: Which these are: ``test``, ``held-out`` or ``validation``.
        chose: Whether η was chosen on these very images.
        data: All images.
        seconds: What calibration took, its measuring of η included.
    """

    calibration: Calibration
    choice: EtaChoice | None
    before: CleanAccuracy
    first_pass: Comparison
    after: Comparison
    grey_levels: float
    split: str
    chose: bool
    data: CalibrationData
    seconds: float

    @property
    def drop(self) -> float:
        """Clean accuracy lost, in points."""
        return self.after.drop

    @property
    def calibrated_images(self) -> int:
        """Images that went through the calibration, repeated ones as often as they did."""
        return self.calibration.batches * self.calibration.batch_size


@dataclasses.dataclass(frozen=True)
class Kept:
    """Where a calibration keeps its state while it is made.

    Attributes:
        file: The file.
        resume: Whether to go on from what is there.
        notice: Called with a line when it cannot be written.
    """

    file: Path
    resume: bool = False
    notice: Callable[[str], None] = warnings.warn


def run(
    recipe: Recipe,
    preparation: Preparation,
    report: Report,
    *,
    kept: Kept | None = None,
    processes: Processes = ALONE,
) -> Outcome:
    """Read the images, choose η if it is to be chosen, calibrate, and measure clean accuracy.

    Args:
        recipe: What was asked for.
        preparation: What :func:`~sad_deploy.preparation.prepare` made of it.
        report: Told of every batch.
        kept: Where the state is kept; nowhere if not given.
        processes: That work together; all of them get the outcome.

    Raises:
        UserError: The images cannot be used, no η of the grid does anything, or the state that is kept is of
            another calibration.
    """
    if preparation.batches < processes.count:
        raise UserError(
            f"{preparation.batches} batches are fewer than {processes.count} processes", hint="start fewer"
        )
    data = preparation.data.load(
        preparation.preprocessing,
        calibration=preparation.batches * recipe.batch_size,
        held_out=HELD_OUT_IMAGES if recipe.eta is not None else 2 * HELD_OUT_IMAGES,
        seed=recipe.seed,
        decoded=functools.partial(report, "reading images"),
    )
    if not len(data.held_out):
        raise UserError(
            f"{data.name} has too few images to hold any out for measuring clean accuracy", hint="add images"
        )
    own_test = data.test is not None
    if recipe.eta is None:
        data = data.with_test(LEAST_TEST_IMAGES, recipe.seed)
    check_labels(preparation, data, report)
    keeper = Keeper(processes)
    if kept is not None:
        sets = {"calibration": data.calibration, "held out": data.held_out}
        identity = identity_of(preparation.model, sets, recipe, processes)
        keeper = FileKeeper(kept.file, identity, processes, resume=kept.resume, notice=kept.notice)
    start = time.monotonic()
    choice = _chosen(recipe, preparation, data, report, keeper) if recipe.eta is None else None
    calibration = choice.calibration if choice else _given(recipe, preparation, data, report, keeper)
    seconds = time.monotonic() - start
    images = data.held_out if data.test is None else data.test
    split = "test" if own_test else "held-out" if data.validation is None else "validation"
    chose = choice is not None and data.test is None
    before, (first_pass, after), moved = _measured(preparation, calibration, images, report, processes)
    return Outcome(calibration, choice, before, first_pass, after, moved, split, chose, data, seconds)


def _chosen(
    recipe: Recipe,
    preparation: Preparation,
    data: CalibrationData,
    report: Report,
    keeper: Keeper,
) -> EtaChoice:
    calibrated = 0
    steps = math.ceil(len(data.held_out) / _EVALUATION_BATCH)

    def batch_done(done: int) -> None:
        nonlocal calibrated
        calibrated = done
        report("calibrating", done, preparation.batches)

    def held_out_done(done: int) -> None:
        if calibrated < preparation.batches:
            report("trying eta", done, min(steps, math.ceil(SCOUTING / _EVALUATION_BATCH)))
        else:
            report("measuring eta", done, steps)

    return choose_eta(
        preparation.model,
        batches_of(recipe, preparation, data),
        _Evaluation(data.held_out),
        settings_of(recipe, preparation),
        grid=recipe.eta_grid,
        max_drop=recipe.max_drop,
        allow_drop=recipe.allow_drop,
        progress=batch_done,
        held_out_progress=held_out_done,
        keeper=keeper,
    )


def _given(
    recipe: Recipe,
    preparation: Preparation,
    data: CalibrationData,
    report: Report,
    keeper: Keeper,
) -> Calibration:
    assert recipe.eta is not None

    def done(count: int) -> None:
        report("calibrating", count, preparation.batches)

    batches, settings = batches_of(recipe, preparation, data), settings_of(recipe, preparation)
    sweep = calibrate_each(
        preparation.model,
        batches,
        (recipe.eta,),
        settings,
        progress=done,
        keeper=keeper,
    )
    return sweep.calibration(recipe.eta)


def batches_of(
    recipe: Recipe, preparation: Preparation, data: CalibrationData
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """What is calibrated on."""
    return training_batches(
        data.calibration, batch_size=recipe.batch_size, batches=preparation.batches, seed=recipe.seed
    )


def settings_of(recipe: Recipe, preparation: Preparation) -> CalibrationSettings:
    """What decides a calibration, but for η."""
    return CalibrationSettings(
        normalization=recipe.normalization,
        clip=preparation.input_space.pixel_range if recipe.clip else None,
        attack=recipe.attack,
        input_space=preparation.input_space,
        momentum=recipe.momentum,
        seed=recipe.seed,
        tolerance=recipe.tolerance,
    )


def _measured(
    preparation: Preparation,
    calibration: Calibration,
    images: ImageSet,
    report: Report,
    processes: Processes,
) -> tuple[CleanAccuracy, list[Comparison], float]:
    settings, model = calibration.settings, calibration.model
    classifier = SADClassifier(
        model, eta=calibration.eta, normalization=settings.normalization, clip=settings.clip
    )
    moved: list[float] = []

    def first_pass(x: Tensor) -> Tensor:
        with torch.no_grad():
            return logits_of(model, x)

    def second_pass(x: Tensor) -> Tensor:
        logits, levels = defended(classifier, x, preparation.input_space)
        moved.append(levels)
        return logits

    watched = _watched(images, functools.partial(report, "measuring clean accuracy"))
    before, after = clean_accuracy(
        preparation.model, lambda: (first_pass, second_pass), watched, preparation.input_space, processes
    )
    moved = [levels for each in processes.gather(moved) for levels in each]
    return before, after, sum(moved) / len(moved)


def check_labels(preparation: Preparation, data: CalibrationData, report: Report) -> None:
    """See :mod:`.label_order`; on some of the images, before the long work."""
    model = preparation.model
    device = next(model.parameters()).device
    labels, predictions = [], []
    left = LABELS_CHECKED
    for images in (data.held_out, data.calibration):
        some = images.take(np.arange(min(left, len(images))))
        if some.labels is None or not len(some):
            continue
        left -= len(some)
        labels.append(some.labels)
        for batch in _watched(some, functools.partial(report, "checking labels")):
            x = standardized(batch[0].to(device), preparation.input_space)
            with torch.no_grad(), evaluating(model):
                predictions.append(logits_of(model, x).argmax(1).cpu().numpy())
    if labels:
        check_label_order(np.concatenate(labels), np.concatenate(predictions), preparation.classes)


class _Evaluation:
    """Batches of images that can be gone over more than once."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __iter__(self) -> Iterator[Batch]:
        yield from every_batch(self.images, batch_size=_EVALUATION_BATCH)


def _watched(images: ImageSet, report: functools.partial[None]) -> Iterator[tuple[Tensor, Tensor | None]]:
    total = math.ceil(len(images) / _EVALUATION_BATCH)
    for done, batch in enumerate(every_batch(images, batch_size=_EVALUATION_BATCH), start=1):
        yield batch
        report(done, total)
