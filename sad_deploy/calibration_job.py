"""The whole of ``sad-deploy calibrate`` after its preparation: images in, bundle and figures out."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sad_runtime.errors import UserError
from sad_runtime.manifest import Defence, Manifest

from .accuracy import CleanAccuracy, clean_accuracy
from .calibrated import write_calibrated
from .calibration import Batch, Calibration, CalibrationSettings, calibrate_each
from .classifier import SADClassifier, standardized
from .data import CalibrationData, ImageSet, every_batch, training_batches
from .eta import ETA_GRID, EtaChoice, choose_eta
from .label_order import check_label_order
from .preparation import Preparation
from .progress import Report
from .recipe import Recipe
from .saliency import evaluating, logits_of

HELD_OUT_IMAGES = 1000
"""Most images η is chosen on, and clean accuracy reported on."""

LABELS_CHECKED = 512
"""Most images on which labels are compared with predictions beforehand."""

LARGE_DROP = 5.0
"""Points of clean accuracy whose loss deserves a loud warning."""

_EVALUATION_BATCH = 128


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a calibration gave.

    Attributes:
        calibration: Φ1.
        choice: The sweep, if η was chosen.
        before: Clean accuracy of Φ0 alone.
        after: Clean accuracy of the defended Φ1, on the same images.
        split: Which images these are: ``test``, or ``held-out``, the ones η was chosen on.
        data: The images.
    """

    calibration: Calibration
    choice: EtaChoice | None
    before: CleanAccuracy
    after: CleanAccuracy
    split: str
    data: CalibrationData

    @property
    def drop(self) -> float:
        """Clean accuracy lost, in points."""
        return self.before.percent - self.after.percent


def run(
    recipe: Recipe, preparation: Preparation, report: Report, *, grid: Sequence[float] = ETA_GRID
) -> Outcome:
    """Read the images, choose η if it is to be chosen, calibrate, and measure clean accuracy.

    Args:
        recipe: What was asked for.
        preparation: What :func:`~sad_deploy.preparation.prepare` made of it.
        report: Told of every batch.
        grid: The η to sweep.

    Raises:
        UserError: The images cannot be used.
    """
    data = preparation.data.load(
        preparation.preprocessing,
        calibration=recipe.batches * recipe.batch_size,
        held_out=HELD_OUT_IMAGES,
        seed=recipe.seed,
        decoded=functools.partial(report, "reading images"),
    )
    if not len(data.held_out):
        raise UserError(
            f"{data.name} has too few images to hold any out for measuring clean accuracy", hint="add images"
        )
    _check_labels(preparation, data, report)
    batches = training_batches(
        data.calibration, batch_size=recipe.batch_size, batches=recipe.batches, seed=recipe.seed
    )
    settings = _settings(recipe, preparation)

    def calibrated(done: int) -> None:
        report("calibrating", done, recipe.batches)

    choice: EtaChoice | None = None
    if recipe.eta is None:
        held_out = _reported(data.held_out, functools.partial(report, "choosing eta"))
        choice = choose_eta(
            preparation.model,
            batches,
            held_out,
            settings,
            grid=grid,
            max_drop=recipe.max_drop,
            progress=calibrated,
        )  # fmt: skip
        calibration = choice.calibration
    else:
        sweep = calibrate_each(preparation.model, batches, (recipe.eta,), settings, progress=calibrated)
        calibration = sweep.calibration(recipe.eta)

    defended = SADClassifier(
        calibration.model, eta=calibration.eta, normalization=recipe.normalization, clip=settings.clip
    )
    images, split = (data.held_out, "held-out") if data.test is None else (data.test, "test")
    measured = _reported(images, functools.partial(report, "measuring clean accuracy"))
    before, (after,) = clean_accuracy(
        preparation.model, lambda: (defended,), measured, preparation.input_space
    )
    return Outcome(calibration, choice, before, after, split, data)


def _settings(recipe: Recipe, preparation: Preparation) -> CalibrationSettings:
    return CalibrationSettings(
        normalization=recipe.normalization,
        clip=preparation.input_space.pixel_range if recipe.clip else None,
        attack=recipe.attack,
        input_space=preparation.input_space,
        momentum=recipe.momentum,
        seed=recipe.seed,
    )


def _check_labels(preparation: Preparation, data: CalibrationData, report: Report) -> None:
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
        for batch in _reported(some, functools.partial(report, "checking labels")):
            x = standardized(batch[0].to(device), preparation.input_space)
            with torch.no_grad(), evaluating(model):
                predictions.append(logits_of(model, x).argmax(1).cpu().numpy())
    if labels:
        check_label_order(np.concatenate(labels), np.concatenate(predictions), preparation.classes)


def _reported(images: ImageSet, report: functools.partial[None]) -> Iterator[Batch]:
    total = math.ceil(len(images) / _EVALUATION_BATCH)
    batches: Iterable[Batch] = every_batch(images, batch_size=_EVALUATION_BATCH)
    for done, batch in enumerate(batches, start=1):
        yield batch
        report(done, total)


def save(destination: Path, recipe: Recipe, preparation: Preparation, outcome: Outcome) -> None:
    """Write the bundle, with as many held-out images for verification as the recipe says.

    Raises:
        UserError: It cannot be written; what was there is as it was.
    """
    manifest = Manifest(
        model=preparation.source,
        classes=preparation.classes,
        preprocessing=preparation.preprocessing,
        input_space=preparation.input_space,
        defence=Defence(outcome.calibration.eta, recipe.normalization, recipe.clip),
        calibration=provenance(recipe, preparation, outcome),
    )
    held_out = outcome.data.held_out
    samples = ImageSet(
        held_out.images[: recipe.samples],
        None if held_out.labels is None else held_out.labels[: recipe.samples],
    )
    write_calibrated(destination, outcome.calibration.model, manifest, samples, base=preparation.model)


def provenance(recipe: Recipe, preparation: Preparation, outcome: Outcome) -> dict[str, Any]:
    """How the calibration came about and what it cost, as JSON values; figures with their images."""
    data, attack = outcome.data, recipe.attack
    described: dict[str, Any] = {"kind": attack.kind.value}
    if attack.kind.bounded:
        described |= {"norm": "Linf", "epsilon": attack.epsilon}
    if attack.kind.iterative:
        described |= {"steps": attack.steps, "step_size": attack.alpha, "random_start": attack.random_start}
    return {
        "algorithm": "paper" if recipe.paper else "default",
        "data": {
            "source": data.name,
            "labelled": data.classes is not None,
            "calibration_images": len(data.calibration),
            "held_out_images": len(data.held_out),
            "test_images": 0 if data.test is None else len(data.test),
            "skipped_images": len(data.skipped),
        },
        "weights": dict(preparation.weights),
        "attack": described,
        "batches": outcome.calibration.batches,
        "batch_size": outcome.calibration.batch_size,
        "momentum": "cumulative" if recipe.momentum is None else recipe.momentum,
        "seed": recipe.seed,
        "statistics_shift": outcome.calibration.shift,
        "unused_layers": list(outcome.calibration.unused_layers),
        "clean_accuracy": {
            "images": outcome.before.images,
            "split": outcome.split,
            "against": outcome.before.reference.value,
            "before_percent": outcome.before.percent,
            "after_percent": outcome.after.percent,
        },
        "eta": _eta(outcome.choice),
        "torch": torch.__version__,
        "device": next(preparation.model.parameters()).device.type,
    }


def _eta(choice: EtaChoice | None) -> dict[str, Any]:
    if choice is None:
        return {"chosen": "given"}
    return {
        "chosen": "sweep",
        "max_drop_points": choice.max_drop,
        "within_max_drop": choice.within_limit,
        "split": "held-out",
        "images": choice.plain.images,
        "against": choice.plain.reference.value,
        "before_percent": choice.plain.percent,
        "rows": [{"eta": row.eta, "clean_percent": row.accuracy.percent} for row in choice.rows],
    }
