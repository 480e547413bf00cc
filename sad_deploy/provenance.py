"""What a calibration leaves behind: the bundle, and in its manifest how it came about and what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sad_runtime.manifest import Defence, Manifest

from .accuracy import CleanAccuracy, Comparison
from .calibrated import write_calibrated
from .calibration_job import Outcome
from .data import ImageSet
from .eta import EtaRow
from .preparation import Preparation
from .recipe import Recipe
from .running_statistics import Convergence


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
            "validation": data.validation,
            "labelled": data.classes is not None,
            "calibration_images": len(data.calibration),
            "held_out_images": len(data.held_out),
            "test_images": 0 if data.test is None else len(data.test),
            "skipped_images": len(data.skipped),
        },
        "weights": dict(preparation.weights),
        **({} if preparation.bundle is None else {"recalibrated_from": dict(preparation.bundle)}),
        "attack": described,
        "batches": outcome.calibration.batches,
        "batch_size": outcome.calibration.batch_size,
        "momentum": "cumulative" if recipe.momentum is None else recipe.momentum,
        "seed": recipe.seed,
        "statistics_shift": outcome.calibration.shift,
        "convergence": _convergence(outcome.calibration.convergence),
        "unused_layers": list(outcome.calibration.unused_layers),
        "clean_accuracy": {
            "images": outcome.before.images,
            "split": outcome.split,
            "chose_eta": outcome.chose,
            "against": outcome.before.reference.value,
            **_figures("before", outcome.before),
            **_figures("first_pass", outcome.first_pass.accuracy),
            **_figures("after", outcome.after.accuracy),
            **_drop(outcome.after),
            "grey_levels": outcome.grey_levels,
        },
        "eta": _eta(outcome),
        "torch": torch.__version__,
        "device": next(preparation.model.parameters()).device.type,
    }


def _figures(name: str, accuracy: CleanAccuracy) -> dict[str, Any]:
    return {f"{name}_percent": accuracy.percent, f"{name}_95_percent_interval": list(accuracy.interval)}


def _drop(comparison: Comparison) -> dict[str, Any]:
    return {"drop_points": comparison.drop, "drop_95_percent_interval": list(comparison.interval)}


def _convergence(found: Convergence | None) -> dict[str, Any] | None:
    """Relative standard errors of the statistics."""
    if found is None:
        return None
    return {"standard_error": found.overall, "layers": dict(found.layers)}


def _eta(outcome: Outcome) -> dict[str, Any]:
    choice = outcome.choice
    if choice is None:
        return {"chosen": "given"}
    return {
        "chosen": "sweep",
        "max_drop_points": choice.max_drop,
        "within_max_drop": choice.within_limit,
        "split": "held-out" if outcome.data.validation is None else "validation",
        "images": choice.plain.images,
        "against": choice.plain.reference.value,
        **_figures("before", choice.plain),
        "rows": [_row(row) for row in choice.rows],
    }


def _row(row: EtaRow) -> dict[str, Any]:
    return {
        "eta": row.eta,
        "grey_levels": row.grey_levels,
        "clean_percent": row.accuracy.percent,
        **_drop(row.comparison),
        "images": row.accuracy.images,
        "batches": row.batches,
    }
