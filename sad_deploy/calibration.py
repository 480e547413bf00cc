"""Algorithm 1 of the paper: Φ0 → Φ1, the same weights with statistics of salient adversarial images.

For every batch: x_adv = attack(Φ0, x, y); x_sadv = clip(x_adv + η·n(S0(x_adv))); forward x_sadv with only the
BatchNorm layers in train mode. x_adv and S0 come from the frozen Φ0 and do not depend on η, so several η are
calibrated in one run over the batches: per η only its statistics are kept, never the samples. Memory beyond
one batch is two copies of the model and, per η, a few floats a channel.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import BatchNorm1d

from sad_runtime.choices import Normalization
from sad_runtime.errors import UserError
from sad_runtime.manifest import InputSpace, Preprocessing

from .attacks import Attack, perturb
from .batch_checks import Batch, BatchChecks
from .batchnorm import (
    Layers,
    Statistics,
    batchnorm_layers,
    read_statistics,
    recording_use,
    relative_shift,
    shorten,
    update_statistics,
    write_statistics,
)
from .classifier import Clip, add_saliency, check_clip, check_eta, standardized
from .fold import fold_batchnorm
from .probabilities import refuse_probabilities
from .saliency import saliency

if TYPE_CHECKING:
    from sad_runtime.bundle import Bundle

Progress = Callable[[int], None]
"""Called after every batch with the number of batches done."""

Grid = Callable[[Tensor, InputSpace], Sequence[float]]
"""From S0 of the first adversarial batch (N, C, H, W) and its input space to the η to calibrate for."""


@dataclasses.dataclass(frozen=True)
class CalibrationSettings:
    """What one calibration does, apart from η; the fields are explained at :func:`calibrate`."""

    normalization: Normalization = Normalization.NONE
    clip: Clip | None = None
    attack: Attack = dataclasses.field(default_factory=Attack)
    input_space: InputSpace | None = None
    momentum: float | None = None
    seed: int = 0

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
    """

    model: nn.Module
    eta: float
    settings: CalibrationSettings
    batches: int
    batch_size: int
    shift: float
    unused_layers: tuple[str, ...]
    original: Mapping[str, Statistics] = dataclasses.field(default_factory=dict, repr=False)

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
    """Statistics for several η over one set of weights; filled by :class:`CalibrationRun`."""

    def __init__(self, model: nn.Module, settings: CalibrationSettings) -> None:
        self.etas: tuple[float, ...] = ()
        self.settings = settings
        self.batches = 0
        self.batch_size = 0
        self._all_layers = tuple(batchnorm_layers(model))
        self._requires_grad = [parameter.requires_grad for parameter in model.parameters()]
        self._phi1 = copy.deepcopy(model).eval().requires_grad_(False)
        self._layers: Layers = {}
        self._original: Mapping[str, Statistics] = {}
        self._by_eta: dict[float, Mapping[str, Statistics]] = {}

    def start(self, etas: Sequence[float], reached: set[str]) -> None:
        """Choose the η, the layers to update and their first statistics; layers not reached keep theirs."""
        layers = batchnorm_layers(self._phi1)
        self._layers = {name: layer for name, layer in layers.items() if name in reached}
        if not self._layers:
            raise UserError(
                f"the forward pass reaches none of the BatchNorm layers: {shorten(list(layers))}",
                hint="give a network that uses its BatchNorm layers in eval mode",
            )
        self._original = read_statistics(self._layers)
        if self.settings.momentum is None:
            for layer in self._layers.values():
                layer.reset_running_stats()
        self.etas = tuple(dict.fromkeys(map(check_eta, etas)))
        self._by_eta = dict.fromkeys(self.etas, read_statistics(self._layers))

    def lay_out(self, layout: torch.memory_format) -> None:
        """Keep Φ1's convolution weights in another order in memory while it is calibrated."""
        self._phi1.to(memory_format=layout)

    def keep(self, etas: Collection[float]) -> None:
        """Calibrate on for these η only; the statistics of the others are forgotten."""
        self.etas = tuple(eta for eta in self.etas if eta in etas)
        self._by_eta = {eta: self._by_eta[eta] for eta in self.etas}

    def update(self, x_adv: Tensor, s0: Tensor) -> None:
        """Add one batch: x_adv (N, C, H, W) in the network's input space, and S0 of it."""
        settings = self.settings
        for eta in self.etas:
            x_sadv = add_saliency(
                x_adv, s0, eta=eta, normalization=settings.normalization, clip=settings.clip
            )
            update_statistics(self.model_at(eta), self._layers, x_sadv, momentum=settings.momentum)
            self._by_eta[eta] = read_statistics(self._layers)
        self.batches += 1
        self.batch_size = len(x_adv)

    def model_at(self, eta: float) -> nn.Module:
        """Φ1 for one η. It is one module for all η: asking for another η changes it."""
        write_statistics(self._layers, self._by_eta[eta])
        return self._phi1

    def calibration(self, eta: float) -> Calibration:
        """The calibration for one η, with a model of its own."""
        model = copy.deepcopy(self.model_at(eta)).to(memory_format=torch.contiguous_format)
        for parameter, flag in zip(model.parameters(), self._requires_grad, strict=True):
            parameter.requires_grad_(flag)
        return Calibration(
            model=model,
            eta=eta,
            settings=self.settings,
            batches=self.batches,
            batch_size=self.batch_size,
            shift=relative_shift(self._original, self._by_eta[eta]),
            unused_layers=tuple(name for name in self._all_layers if name not in self._layers),
            original=self._original,
        )


def calibrate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    eta: float,
    normalization: Normalization | str = Normalization.NONE,
    clip: Clip | None = None,
    attack: Attack | None = None,
    input_space: InputSpace | None = None,
    momentum: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Calibration:
    """Algorithm 1 for one η. ``model`` is not modified.

    Args:
        model: Φ0; maps the network's input space (N, C, H, W) to logits (N, K). The work runs on its device.
        batches: At least two batches of one size, pixels in [0, 1]; without labels, Φ0's own predictions are
            attacked.
        eta: Hybridization ratio η, in the network's input space.
        normalization: How S is scaled before η.
        clip: Bounds of x + η·n(S) in the network's input space, for example ``input_space.pixel_range``.
        attack: The adversarial samples; None is PGD-10 at ε = 8/255.
        input_space: Pixels to network input; None when the network takes pixels as they are.
        momentum: None for the cumulative average from fresh statistics; a number in (0, 1] for an exponential
            moving average that starts from Φ0's statistics and so keeps (1 − momentum)ⁿ of them.
        seed: Of the attack's random start.
        progress: Told after every batch.

    Returns:
        Φ1 and its provenance.

    Raises:
        UserError: The model has no usable BatchNorm, or a batch is unusable (non-finite, constant, of another
            shape, not in [0, 1], too few); it is named. No statistics have changed then.
    """
    settings = CalibrationSettings(
        normalization=Normalization(normalization),
        clip=clip,
        attack=attack or Attack(),
        input_space=input_space,
        momentum=momentum,
        seed=seed,
    )
    return calibrate_each(model, batches, (eta,), settings, progress=progress).calibration(float(eta))


def calibrate_each(
    model: nn.Module,
    batches: Iterable[Batch],
    etas: Sequence[float],
    settings: CalibrationSettings,
    *,
    progress: Progress | None = None,
) -> CalibrationSweep:
    """Algorithm 1 for several η in one run: one attack and one S0 a batch, then one forward pass an η.

    Args:
        model: As in :func:`calibrate`; not modified.
        batches: As in :func:`calibrate`.
        etas: The hybridization ratios.
        settings: Everything else.
        progress: Told after every batch.

    Returns:
        The statistics for every η.

    Raises:
        UserError: As :func:`calibrate`.
    """
    run = CalibrationRun(model, etas, settings)
    for batch in batches:
        run.add(batch)
        if progress is not None:
            progress(run.sweep.batches)
    return run.finish()


class CalibrationRun:
    """Algorithm 1 a batch at a time, for several η at once.

    Passes of Φ0 a batch: those of the attack (PGD: one forward and one backward a step), one forward and one
    backward for S0. Then a forward of Φ1 an η. The first batch takes one forward more, to see which layers a
    network reaches and whether it returns logits.

    Args:
        model: Φ0; not modified.
        etas: The hybridization ratios, or what decides on them when S0 is first seen.
        settings: Everything else.
    """

    def __init__(self, model: nn.Module, etas: Sequence[float] | Grid, settings: CalibrationSettings) -> None:
        self.sweep = CalibrationSweep(model, settings)
        self._etas = etas if callable(etas) else tuple(map(check_eta, etas))
        self._phi0 = copy.deepcopy(model).eval().requires_grad_(False)
        layers = batchnorm_layers(self._phi0)
        single = any(isinstance(layer, BatchNorm1d) for layer in layers.values())
        self._checks = BatchChecks(refuse_singletons=single)
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._layout = torch.contiguous_format

    def add(self, batch: Batch) -> None:
        """Update the statistics for every η.

        Raises:
            UserError: The batch is unusable; it is named, and no statistics have changed.
        """
        index = self.sweep.batches
        images, labels = self._checks.checked(index, batch)
        like = next((p for p in self._phi0.parameters() if p.is_floating_point()), torch.zeros(()))
        images = images.to(like.device, like.dtype)
        settings = self.sweep.settings
        space = settings.input_space or _pixels(images)
        reached = self._prepare(standardized(images, space)) if not index else set()
        images = images.contiguous(memory_format=self._layout)
        adversarial = perturb(self._phi0, images, labels, settings.attack, space, generator=self._generator)
        x_adv = standardized(adversarial, space)
        s0, _ = saliency(self._phi0, x_adv)
        if not index:
            etas = self._etas(s0, space) if callable(self._etas) else self._etas
            self.sweep.start(etas, reached)
        try:
            self.sweep.update(x_adv, s0)
        except UserError as error:
            raise UserError(f"batch {index} (counted from 0): {error.message}", hint=error.hint) from error

    def _prepare(self, x: Tensor) -> set[str]:
        """The BatchNorm layers that Φ0 reaches. From now on Φ0 is folded, and laid out as is fastest.

        Φ0 is only read, and without BatchNorm it is the same network in fewer operations. Channels last
        spares the CPU's convolutions a reordering each; a network that cannot run so, since it views values
        as they lie, or that would give something else, stays as it is.
        """
        with recording_use(batchnorm_layers(self._phi0)) as reached:
            refuse_probabilities(self._phi0, x)
        self._phi0 = fold_batchnorm(self._phi0).requires_grad_(False)
        if x.device.type == "cpu" and _runs_channels_last(self._phi0, x[:2]):
            self._layout = torch.channels_last
            self._phi0.to(memory_format=self._layout)
            self.sweep.lay_out(self._layout)
        return reached

    def finish(self) -> CalibrationSweep:
        """The statistics, if they are of at least two batches.

        Raises:
            UserError: They are not.
        """
        if self.sweep.batches < 2:
            raise UserError(
                f"calibration needs at least two batches, got {self.sweep.batches}",
                hint="use more images or a smaller batch size",
            )
        return self.sweep


def _runs_channels_last(model: nn.Module, x: Tensor) -> bool:
    """Whether the gradient of a network can be had with channels last, and is then the same."""
    expected, logits = saliency(model, x)
    try:
        other = copy.deepcopy(model).to(memory_format=torch.channels_last)
        found, other_logits = saliency(other, x.contiguous(memory_format=torch.channels_last))
    except RuntimeError:  # of a view, or a layer with weights of five dimensions
        return False
    return all(
        float((a - b).norm()) <= 1e-3 * float(a.norm())  # also false where they are not finite
        for a, b in ((expected, found), (logits, other_logits))
    )


def _pixels(images: Tensor) -> InputSpace:
    """The network takes pixels as they are."""
    channels = images.shape[1]
    return InputSpace(mean=(0.0,) * channels, std=(1.0,) * channels)
