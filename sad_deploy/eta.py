"""The choice of η: the largest whose defended clean accuracy stays within a given drop of Φ0's.

A larger η defends more and costs more clean accuracy (Table 4 of the paper); the trade depends on the
network, its input space and the normalisation, so it is measured on held-out images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from sad_runtime.errors import UserError

from .accuracy import CleanAccuracy, Predictor, clean_accuracy
from .calibration import (
    Batch,
    Calibration,
    CalibrationSettings,
    CalibrationSweep,
    Progress,
    calibrate_each,
)
from .classifier import SADClassifier
from .recipe import MAX_DROP

ETA_GRID = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
"""All of the paper's values (Tables 4 and 5, 0.2 … 1.2), and small ones for raw pixel space."""


@dataclasses.dataclass(frozen=True)
class EtaRow:
    """One line of the sweep.

    Attributes:
        eta: η.
        accuracy: Of the defended pipeline calibrated for this η, on held-out clean images.
        drop: Φ0's accuracy on the same images minus it, in points.
    """

    eta: float
    accuracy: CleanAccuracy
    drop: float


@dataclasses.dataclass(frozen=True)
class EtaChoice:
    """The chosen η and the sweep it was chosen from.

    Attributes:
        calibration: Φ1 for the chosen η.
        plain: Φ0's accuracy on the held-out images.
        rows: The sweep, by ascending η.
        max_drop: The limit, in points.
        within_limit: Whether the chosen η keeps it; if not, no η did and the least harmful was taken.
    """

    calibration: Calibration
    plain: CleanAccuracy
    rows: tuple[EtaRow, ...]
    max_drop: float
    within_limit: bool


def choose_eta(
    model: nn.Module,
    batches: Iterable[Batch],
    held_out: Iterable[Batch],
    settings: CalibrationSettings,
    *,
    grid: Sequence[float] = ETA_GRID,
    max_drop: float = MAX_DROP,
    progress: Progress | None = None,
    held_out_progress: Progress | None = None,
) -> EtaChoice:
    """Calibrate for every η of the grid and take the largest that costs at most ``max_drop`` points.

    Args:
        model: Φ0; not modified.
        batches: For calibration, as in :func:`sad_deploy.calibration.calibrate`.
        held_out: Other images of the same kind, pixels in [0, 1]; without labels, agreement with Φ0 counts.
        settings: Everything about the calibration but η.
        grid: The η to try.
        max_drop: Limit, in points of clean accuracy.
        progress: Told after every calibration batch.
        held_out_progress: Told after every held-out batch.

    Returns:
        The choice; ``within_limit`` is False when every η costs more, which deserves a loud warning.

    Raises:
        UserError: As ``calibrate``; or the limit is no number of at least 0, or there are no held-out images.
    """
    if not math.isfinite(max_drop) or max_drop < 0:
        raise UserError(f"max_drop must be a number of at least 0 (points), got {max_drop}")
    sweep = calibrate_each(model, batches, sorted(grid), settings, progress=progress)

    def defended() -> Iterator[Predictor]:
        for eta in sweep.etas:
            yield SADClassifier(
                sweep.model_at(eta), eta=eta, normalization=settings.normalization, clip=settings.clip
            )

    plain, accuracies = clean_accuracy(
        model, defended, _told(held_out, held_out_progress), settings.input_space
    )
    if not plain.images:
        raise UserError("there are no held-out images to choose eta on", hint="give more images, or an eta")
    rows = tuple(
        EtaRow(eta, accuracy, plain.percent - accuracy.percent)
        for eta, accuracy in zip(sweep.etas, accuracies, strict=True)
    )
    return _choose(sweep, plain, rows, max_drop)


def _choose(
    sweep: CalibrationSweep, plain: CleanAccuracy, rows: tuple[EtaRow, ...], max_drop: float
) -> EtaChoice:
    # Counts decide, not percentages: a drop of exactly the limit must pass whatever rounding says.
    allowed = max_drop * plain.images / 100 + 1e-9
    qualified = [row for row in rows if plain.correct - row.accuracy.correct <= allowed]
    best = qualified[-1] if qualified else max(rows, key=lambda row: (row.accuracy.correct, row.eta))
    return EtaChoice(sweep.calibration(best.eta), plain, rows, max_drop, within_limit=bool(qualified))


def _told(batches: Iterable[Batch], progress: Progress | None) -> Iterator[Batch]:
    for index, batch in enumerate(batches):
        yield batch
        if progress is not None:
            progress(index + 1)
