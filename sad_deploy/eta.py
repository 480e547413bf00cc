"""The choice of η: the largest whose defended clean accuracy stays within a given drop of Φ0's.

A larger η defends more and costs more clean accuracy (Table 4 of the paper); the trade depends on the
network, its input space and the normalisation, so it is measured on held-out images, in one run over the
batches:

1. S0 of the first batch decides on a grid; see :mod:`.eta_grid`. η = 0, recalibration alone, is always tried.
2. After a few batches some are measured on a few images. A grid that moves nothing, or a recalibration after
   which nothing can be within the limit, ends the run. Else the η around the limit, and 0, go on.
3. After all batches these are measured on all held-out images, and the largest within the limit is taken.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sad_runtime.errors import UserError
from sad_runtime.manifest import InputSpace

from .accuracy import CleanAccuracy, Comparison, Predictor, Reference, clean_accuracy
from .batch_checks import Batch
from .calibration import CalibrationRun, Grid, Progress
from .classifier import SADClassifier
from .eta_grid import MOVES_NOTHING, defended, grid_for
from .kept_state import NOT_KEPT, Keeper
from .processes import Processes
from .recipe import MAX_DROP
from .saliency import logits_of
from .sweep import Calibration, CalibrationSettings, CalibrationSweep

ETA_GRID = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
"""All of the paper's values (Tables 4 and 5, 0.2 … 1.2), and small ones for raw pixel space."""

_SCOUTED = 256
"""Images calibrated on before all η are measured for the first time."""

SCOUTING = 128
"""Least images that they are then measured on."""

_HOPELESS = 2.0
"""Points beyond the limit, by the interval's low end, that the batches to come would not mend."""

_AROUND = (-3, -1, 0, 1, 2)
"""Which η go on, counted from the largest within the limit so far, of which a few images are no sure sign."""


@dataclasses.dataclass(frozen=True)
class EtaRow:
    """One line of the sweep.

    Attributes:
        eta: η; 0 is recalibration alone.
        grey_levels: Mean |clip(x + η·n(S)) − x| of a pixel, of 255 levels, on these images.
        comparison: The pipeline calibrated for this η beside Φ0, on held-out clean images.
        batches: How many it was calibrated on; fewer than all if it was given up.
    """

    eta: float
    grey_levels: float
    comparison: Comparison
    batches: int

    @property
    def accuracy(self) -> CleanAccuracy:
        """Of the defended pipeline."""
        return self.comparison.accuracy

    @property
    def drop(self) -> float:
        """Φ0's accuracy on the same images minus it, in points."""
        return self.comparison.drop


@dataclasses.dataclass(frozen=True)
class EtaChoice:
    """The chosen η and the sweep it was chosen from.

    Attributes:
        calibration: Φ1 for the chosen η.
        plain: Φ0's accuracy on the held-out images.
        rows: The sweep, by ascending η; the first is η = 0.
        max_drop: The limit, in points.
        within_limit: Whether the chosen η keeps it; if not, no η did and the least harmful was taken.
        stopped: Whether the run ended early, as no η could keep it.
    """

    calibration: Calibration
    plain: CleanAccuracy
    rows: tuple[EtaRow, ...]
    max_drop: float
    within_limit: bool
    stopped: bool = False

    @property
    def chosen(self) -> EtaRow:
        """The row of the chosen η."""
        return next(row for row in self.rows if row.eta == self.calibration.eta)

    @property
    def recalibrated(self) -> EtaRow:
        """The row of η = 0: what recalibration alone costs."""
        return self.rows[0]


def choose_eta(
    model: nn.Module,
    batches: Iterable[Batch],
    held_out: Iterable[Batch],
    settings: CalibrationSettings,
    *,
    grid: Sequence[float] | None = None,
    max_drop: float = MAX_DROP,
    allow_drop: bool = False,
    progress: Progress | None = None,
    held_out_progress: Progress | None = None,
    keeper: Keeper = NOT_KEPT,
) -> EtaChoice:
    """Calibrate for several η and take the largest that costs at most ``max_drop`` points.

    Args:
        model: Φ0; not modified.
        batches: For calibration, as in :func:`sad_deploy.calibration.calibrate`.
        held_out: Other images of the same kind, pixels in [0, 1]; without labels, agreement with Φ0 counts.
            They are gone over twice; what can be iterated only once is kept in memory.
        settings: Everything about the calibration but η.
        grid: The η to try, all of them to the end; None for a grid that follows the network.
        max_drop: Limit, in points of clean accuracy.
        allow_drop: Go on to the end where no η can keep the limit.
        progress: Told after every calibration batch.
        held_out_progress: Told after every held-out batch; counts from 1 again the second time.
        keeper: Of the state in between, and of the processes that divide all batches among them.

    Returns:
        The choice; ``within_limit`` is False when every η costs more: do not use it unasked.

    Raises:
        UserError: As ``calibrate``; or the limit is no number of at least 0, there are no held-out images,
            S is zero, or no η of the grid moves a pixel noticeably.
    """
    if not math.isfinite(max_drop) or max_drop < 0:
        raise UserError(f"max_drop must be a number of at least 0 (points), got {max_drop}")
    held_out = list(held_out) if iter(held_out) is held_out else held_out
    told = functools.partial(_told, held_out, held_out_progress)
    if grid is not None and not any(eta > 0 for eta in grid):
        raise UserError("the grid has no eta above 0: there is nothing to choose")
    run = CalibrationRun(model, _with_zero(grid, settings), settings, keeper)
    scout = _Scout(model, run.sweep, max_drop, keeper.processes, prunes=grid is None, stops=not allow_drop)
    scout.take_up(keeper.notes)
    for batch in batches:
        if not scout.rows and run.sweep.batches >= max(2, _SCOUTED / max(1, run.sweep.batch_size)):
            scout.look(told())
            keeper.note(scout.notes())
            if scout.stopped:
                break
        run.add(batch)
        if progress is not None:
            progress(run.sweep.batches)
        if scout.rows and run.is_enough():
            break
    sweep = run.finish()
    if not scout.rows and grid is None:  # else all would be measured on all images
        scout.look(told(), at_the_end=True)
    plain, final = (
        (scout.plain, scout.rows) if scout.stopped else _measured(model, sweep, told(), keeper.processes)
    )
    assert plain is not None
    rows = dict(sorted((scout.rows | final).items()))
    _refuse_flat(rows)
    best, within_limit = _best([row for row in final.values() if row.eta > 0], plain, max_drop)
    chosen = sweep.calibration(best.eta)
    return EtaChoice(chosen, plain, tuple(rows.values()), max_drop, within_limit, scout.stopped)


class _Scout:
    """A first look at every other η, on a few images, to see where the limit is.

    Args:
        model: Φ0.
        sweep: Its statistics so far.
        max_drop: The limit, in points.
        processes: That measure together.
        prunes: Whether only the η around the limit go on.
        stops: Whether the run ends where nothing can be within the limit.
    """

    def __init__(
        self,
        model: nn.Module,
        sweep: CalibrationSweep,
        max_drop: float,
        processes: Processes,
        *,
        prunes: bool,
        stops: bool,
    ) -> None:
        self.model, self.sweep, self.max_drop, self.processes = model, sweep, max_drop, processes
        self.prunes, self.stops = prunes, stops
        self.plain: CleanAccuracy | None = None
        self.rows: dict[float, EtaRow] = {}
        self.stopped = False

    def look(self, held_out: Iterable[Batch], *, at_the_end: bool = False) -> None:
        """Measure, and prune: what is left is calibrated on further, or at the end measured on more images.

        Raises:
            UserError: The largest η moves nothing.
        """
        etas = self.sweep.etas
        tried = {0.0, *etas[1::2]} if self.prunes else etas
        self.sweep.settle()
        some = _some(held_out, SCOUTING)
        self.plain, self.rows = _measured(self.model, self.sweep, some, self.processes, etas=tried)
        _refuse_flat(self.rows)
        hopeless = all(row.comparison.interval[0] > self.max_drop + _HOPELESS for row in self.rows.values())
        self.stopped = hopeless and self.stops and not at_the_end
        pays = not at_the_end or self.plain.images >= SCOUTING
        if self.prunes and not self.stopped and pays:
            self.sweep.keep(_worth_going_on(etas, self.rows, self.max_drop))

    def notes(self) -> dict[str, Any]:
        """What was found, as JSON values."""
        assert self.plain is not None
        return {
            "plain": dataclasses.asdict(self.plain),
            "rows": [dataclasses.asdict(row) for row in self.rows.values()],
        }

    def take_up(self, notes: dict[str, Any] | None) -> None:
        """What :meth:`notes` gave before an interruption."""
        if notes is None:
            return
        self.plain = _accuracy(notes["plain"])
        for each in notes["rows"]:
            compared = each["comparison"]
            comparison = Comparison(_accuracy(compared["accuracy"]), compared["lost"], compared["gained"])
            self.rows[each["eta"]] = EtaRow(each["eta"], each["grey_levels"], comparison, each["batches"])


def _accuracy(said: dict[str, Any]) -> CleanAccuracy:
    return CleanAccuracy(said["correct"], said["images"], Reference(said["reference"]))


def _with_zero(grid: Sequence[float] | None, settings: CalibrationSettings) -> Grid:
    def etas(s0: Tensor, space: InputSpace) -> Sequence[float]:
        return (0.0, *sorted(grid or grid_for(s0, space, settings.normalization)))

    return etas


def _measured(
    model: nn.Module,
    sweep: CalibrationSweep,
    held_out: Iterable[Batch],
    processes: Processes,
    *,
    etas: Collection[float] = (),
) -> tuple[CleanAccuracy, dict[float, EtaRow]]:
    """Φ0's accuracy, and a row for each of some η or all, with the statistics that the sweep settled last."""
    settings = sweep.settings
    measured = [eta for eta in sweep.etas if not etas or eta in etas]
    moved: dict[float, list[float]] = {eta: [] for eta in measured}

    def answered(eta: float, x: Tensor) -> Tensor:
        phi1 = sweep.model_at(eta)
        if eta == 0:
            moved[eta].append(0.0)
            with torch.no_grad():
                return logits_of(phi1, x)
        classifier = SADClassifier(phi1, eta=eta, normalization=settings.normalization, clip=settings.clip)
        logits, levels = defended(classifier, x, settings.input_space)
        moved[eta].append(levels)
        return logits

    def contenders() -> Iterator[Predictor]:
        for eta in measured:
            yield functools.partial(answered, eta)

    plain, comparisons = clean_accuracy(model, contenders, held_out, settings.input_space, processes)
    everywhere = processes.gather(moved)
    moved = {eta: [levels for each in everywhere for levels in each[eta]] for eta in measured}
    rows = zip(measured, comparisons, strict=True)
    return plain, {
        eta: EtaRow(eta, sum(moved[eta]) / len(moved[eta]), comparison, sweep.batches)
        for eta, comparison in rows
    }


def _refuse_flat(rows: Mapping[float, EtaRow]) -> None:
    """A grid that moves nothing says nothing, whatever the accuracies are."""
    largest, moved = max(rows), rows[max(rows)].grey_levels
    if moved < MOVES_NOTHING:
        raise UserError(
            f"the sweep is flat: its largest eta, {largest:g}, moves a pixel by {moved:.2g} of 255 grey "
            "levels on average, so that saliency does nothing",
            hint="leave the grid out: the default follows the network; or use rms normalization",
        )


def _worth_going_on(etas: Sequence[float], rows: Mapping[float, EtaRow], max_drop: float) -> set[float]:
    """η = 0, and those around the largest of which saliency alone costs no more than the limit.

    What recalibration costs is left out here: it is the same for all, and large after a few batches.
    """
    recalibration = max(0.0, rows[0.0].drop)
    within = [eta for eta, row in rows.items() if eta > 0 and row.drop - recalibration <= max_drop]
    best = etas.index(max(within)) if within else 1
    return {0.0, *(etas[best + i] for i in _AROUND if 1 <= best + i < len(etas))}


def _best(rows: Sequence[EtaRow], plain: CleanAccuracy, max_drop: float) -> tuple[EtaRow, bool]:
    # Counts decide, not percentages: a drop of exactly the limit must pass whatever rounding says.
    allowed = max_drop * plain.images / 100 + 1e-9
    qualified = [row for row in rows if plain.correct - row.accuracy.correct <= allowed]
    if qualified:
        return qualified[-1], True
    return max(rows, key=lambda row: (row.accuracy.correct, row.eta)), False


def _some(batches: Iterable[Batch], images: int) -> Iterator[Batch]:
    """The first batches, of at least that many images together."""
    seen = 0
    for batch in batches:  # asking for one more is what tells that the last one is done
        if seen >= images:
            return
        yield batch
        seen += len(batch[0] if isinstance(batch, (tuple, list)) else batch)


def _told(batches: Iterable[Batch], progress: Progress | None) -> Iterator[Batch]:
    for index, batch in enumerate(batches):
        yield batch
        if progress is not None:
            progress(index + 1)
