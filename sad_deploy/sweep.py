"""What decides a calibration, what it keeps for several η over one set of weights, and what it gives."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sad_runtime.choices import Normalization
from sad_runtime.errors import UserError
from sad_runtime.manifest import InputSpace, Preprocessing

from .attacks import Attack
from .batchnorm import (
    Layers,
    Statistics,
    batchnorm_layers,
    read_statistics,
    relative_shift,
    update_statistics,
    write_statistics,
)
from .classifier import Clip, add_saliency, check_clip, check_eta
from .processes import ALONE, Processes
from .running_statistics import Convergence, RunningStatistics, Share
from .shorten import shorten

if TYPE_CHECKING:
    from sad_runtime.bundle import Bundle


_LEAST_BATCHES = 8
"""Of fewer, a standard error says little."""


@dataclasses.dataclass(frozen=True)
class CalibrationSettings:
    """What one calibration does, apart from η; the fields are explained at :func:`sad_deploy.calibrate`."""

    normalization: Normalization = Normalization.NONE
    clip: Clip | None = None
    attack: Attack = dataclasses.field(default_factory=Attack)
    input_space: InputSpace | None = None
    momentum: float | None = None
    seed: int = 0
    tolerance: float | None = None

    def __post_init__(self) -> None:
        check_clip(self.clip)
        if self.momentum is not None and not (math.isfinite(self.momentum) and 0 < self.momentum <= 1):
            raise UserError(
                f"momentum must be within (0, 1], got {self.momentum}", hint="None is the cumulative average"
            )


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A calibrated model and how it came about.

    Attributes:
        model: Φ1 in eval mode, on Φ0's device; unfolded.
        eta: Hybridization ratio η it was calibrated for.
        settings: Everything else that decided it.
        batches: How many were used.
        batch_size: Images in each.
        shift: ‖statistics of Φ1 − of Φ0‖ / ‖of Φ0‖ over all updated layers.
        unused_layers: BatchNorm layers that inference does not reach (auxiliary heads); left as they were.
        original: Φ0's statistics of the others.
        convergence: How far its statistics are from those of endless batches; None for a moving average.
    """

    model: nn.Module
    eta: float
    settings: CalibrationSettings
    batches: int
    batch_size: int
    shift: float
    unused_layers: tuple[str, ...]
    original: Mapping[str, Statistics] = dataclasses.field(default_factory=dict, repr=False)
    convergence: Convergence | None = dataclasses.field(default=None, repr=False)

    def base(self) -> nn.Module:
        """Φ0, a copy."""
        model = copy.deepcopy(self.model)
        write_statistics(batchnorm_layers(model), self.original)
        return model

    def save(
        self,
        directory: Path | str,
        *,
        samples: Tensor | tuple[Tensor, Tensor],
        classes: Sequence[str] | None = None,
        model: str | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> Bundle:
        """Write a bundle that :func:`sad_deploy.export` and ``sad-deploy export`` take.

        Args:
            directory: Its folder; a bundle there is replaced.
            samples: At least two real images (N, C, H, W), pixels in [0, 1], not calibrated on, alone or with
                class indices (N,). Every export is verified on them.
            classes: Names in the order of the logits; numbers by default.
            model: What builds the network anew, as for ``--model``: ``package.module:factory`` for example.
                Without it the bundle carries the network as a graph: it can be exported and served, and
                ``load_calibrated(directory, model=…)`` needs the network given.
            preprocessing: Image file to pixels; by default a resize to the samples' size.

        Returns:
            The bundle.

        Raises:
            UserError: The samples do not fit, the network cannot be exported or built by that name, the clip
                is not the pixel range, or the folder cannot be written.
        """
        from .in_memory import save_calibration

        return save_calibration(
            self,
            directory,
            samples=samples,
            classes=classes,
            model=model,
            preprocessing=preprocessing,
        )


class CalibrationSweep:
    """Statistics for several η; filled by :class:`.calibration.CalibrationRun`.

    Attributes:
        etas: η.
        batches: How many there were, those of other processes too.
        batch_size: Images in each.
    """

    def __init__(self, model: nn.Module, settings: CalibrationSettings, processes: Processes = ALONE) -> None:
        self.etas: tuple[float, ...] = ()
        self.settings = settings
        self.batches = 0
        self.batch_size = 0
        self._processes = processes
        self._all_layers = tuple(batchnorm_layers(model))
        self._requires_grad = [parameter.requires_grad for parameter in model.parameters()]
        self._phi1 = copy.deepcopy(model).eval().requires_grad_(False)
        self._layers: Layers = {}
        self._original: Mapping[str, Statistics] = {}
        self._running: dict[float, RunningStatistics] = {}
        self._settled: dict[float, Mapping[str, Statistics]] = {}
        self._convergence: dict[float, Convergence | None] = {}

    def start(self, etas: Sequence[float], reached: set[str]) -> None:
        """Choose the η and the layers to update; layers not reached keep their statistics."""
        layers = batchnorm_layers(self._phi1)
        self._layers = {name: layer for name, layer in layers.items() if name in reached}
        if not self._layers:
            raise UserError(
                f"the forward pass reaches none of the BatchNorm layers: {shorten(list(layers))}",
                hint="give a network that uses its BatchNorm layers in eval mode",
            )
        self._original = read_statistics(self._layers)
        self.etas = tuple(dict.fromkeys(map(check_eta, etas)))
        self._running = {eta: RunningStatistics(self._original, self.settings.momentum) for eta in self.etas}

    def lay_out(self, layout: torch.memory_format) -> None:
        """Keep Φ1's convolution weights in another order in memory while it is calibrated."""
        self._phi1.to(memory_format=layout)

    def keep(self, etas: Collection[float]) -> None:
        """Calibrate on for these η only; the statistics of the others are forgotten."""
        self.etas = tuple(eta for eta in self.etas if eta in etas)
        self._running = {eta: self._running[eta] for eta in self.etas}

    def update(self, x_adv: Tensor, s0: Tensor) -> None:
        """Add one batch, or nothing: x_adv (N, C, H, W) in the network's input space, and S0 of it."""
        settings, found = self.settings, {}
        for eta in self.etas:
            x_sadv = add_saliency(
                x_adv, s0, eta=eta, normalization=settings.normalization, clip=settings.clip
            )
            update_statistics(self._phi1, self._layers, x_sadv, momentum=1.0)  # those of this batch alone
            found[eta] = read_statistics(self._layers)
        for eta, statistics in found.items():
            self._running[eta].add(self.batches, statistics)
        self.pass_over(len(x_adv))

    def pass_over(self, batch_size: int) -> None:
        """Count a batch that another process has, or that was added before an interruption."""
        self.batches += 1
        self.batch_size = batch_size
        self._settled = {}

    def settle(self) -> None:
        """Add up what all processes have: what is asked for below is of that. All must call it."""
        everywhere = self._processes.gather(self.state())
        for eta, running in self._running.items():
            shares = [each[eta] for each in everywhere]
            self._settled[eta] = running.value(shares, self.batches)
            self._convergence[eta] = running.convergence(shares, self.batches)

    def state(self) -> dict[float, Share]:
        """What this process has for each η."""
        return {eta: running.share for eta, running in self._running.items()}

    def restore(self, state: Mapping[float, Share]) -> None:
        """Take up what :meth:`state` gave, after :meth:`start`."""
        for eta, share in state.items():
            self._running[eta].share = share

    def is_converged(self) -> bool:
        """Whether the statistics of every η are as near to their limit as is asked for. All must call it."""
        if self.settings.tolerance is None or self.batches < _LEAST_BATCHES:
            return False
        self.settle()
        errors = [each.overall for each in self._convergence.values() if each is not None]
        return max(errors) <= self.settings.tolerance

    def model_at(self, eta: float) -> nn.Module:
        """Φ1 for one η, settled. It is one module for all η: asking for another η changes it."""
        write_statistics(self._layers, self._settled[eta])
        return self._phi1

    def calibration(self, eta: float) -> Calibration:
        """The calibration for one η, settled, with a model of its own."""
        model = copy.deepcopy(self.model_at(eta)).to(memory_format=torch.contiguous_format)
        for parameter, flag in zip(model.parameters(), self._requires_grad, strict=True):
            parameter.requires_grad_(flag)
        return Calibration(
            model=model,
            eta=eta,
            settings=self.settings,
            batches=self.batches,
            batch_size=self.batch_size,
            shift=relative_shift(self._original, self._settled[eta]),
            unused_layers=tuple(name for name in self._all_layers if name not in self._layers),
            original=self._original,
            convergence=self._convergence[eta],
        )
