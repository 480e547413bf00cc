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
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import BatchNorm1d

from sad_runtime.choices import Normalization
from sad_runtime.errors import UserError
from sad_runtime.manifest import InputSpace

from .attacks import Attack, perturb
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
from .probabilities import refuse_probabilities
from .saliency import saliency

Batch = Tensor | tuple[Tensor, Tensor | None]
"""Pixels (N, C, H, W) in [0, 1], alone or with class indices (N,)."""

Progress = Callable[[int], None]
"""Called after every batch with the number of batches done."""


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
    """

    model: nn.Module
    eta: float
    settings: CalibrationSettings
    batches: int
    batch_size: int
    shift: float
    unused_layers: tuple[str, ...]


class CalibrationSweep:
    """Statistics for several η over one set of weights; made by :func:`calibrate_each`."""

    def __init__(self, model: nn.Module, etas: tuple[float, ...], settings: CalibrationSettings) -> None:
        self.etas = etas
        self.settings = settings
        self.batches = 0
        self.batch_size = 0
        self._all_layers = tuple(batchnorm_layers(model))
        self._requires_grad = [parameter.requires_grad for parameter in model.parameters()]
        self._phi1 = copy.deepcopy(model).eval().requires_grad_(False)
        self._layers: Layers = {}
        self._original: Mapping[str, Statistics] = {}
        self._by_eta: dict[float, Mapping[str, Statistics]] = {}

    def start(self, reached: set[str]) -> None:
        """Choose the layers to update and their first statistics. Layers not reached keep what they have."""
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
        self._by_eta = dict.fromkeys(self.etas, read_statistics(self._layers))

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
        model = copy.deepcopy(self.model_at(eta))
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
    sweep = CalibrationSweep(model, tuple(dict.fromkeys(map(check_eta, etas))), settings)
    phi0 = copy.deepcopy(model).eval().requires_grad_(False)
    layers0 = batchnorm_layers(phi0)
    like = next((p for p in phi0.parameters() if p.is_floating_point()), torch.zeros(()))
    checks = _BatchChecks(refuse_singletons=any(isinstance(layer, BatchNorm1d) for layer in layers0.values()))
    generator = torch.Generator().manual_seed(settings.seed)

    for index, batch in enumerate(batches):
        images, labels = checks.checked(index, batch)
        images = images.to(like.device, like.dtype)
        space = settings.input_space or _pixels(images)
        if index == 0:
            refuse_probabilities(phi0, standardized(images, space))
        with recording_use(layers0) as reached:
            adversarial = perturb(phi0, images, labels, settings.attack, space, generator=generator)
            x_adv = standardized(adversarial, space)
            s0, _ = saliency(phi0, x_adv)
        if index == 0:
            sweep.start(reached)
        try:
            sweep.update(x_adv, s0)
        except UserError as error:
            raise UserError(f"batch {index} (counted from 0): {error.message}", hint=error.hint) from error
        if progress is not None:
            progress(index + 1)
    if sweep.batches < 2:
        raise UserError(
            f"calibration needs at least two batches, got {sweep.batches}",
            hint="use more images or a smaller batch size",
        )
    return sweep


def _pixels(images: Tensor) -> InputSpace:
    """The network takes pixels as they are."""
    channels = images.shape[1]
    return InputSpace(mean=(0.0,) * channels, std=(1.0,) * channels)


class _BatchChecks:
    """What a batch must be, checked before anything runs on it."""

    def __init__(self, *, refuse_singletons: bool) -> None:
        self.refuse_singletons = refuse_singletons
        self.shape: torch.Size | None = None

    def checked(self, index: int, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Images and labels of the batch.

        Raises:
            UserError: It cannot be used; all that is wrong with it is said.
        """
        images, labels = batch if isinstance(batch, (tuple, list)) else (batch, None)
        where = f"batch {index} (counted from 0)"
        if (
            not isinstance(images, Tensor)
            or images.dim() != 4
            or not images.is_floating_point()
            or not images.numel()
        ):
            raise UserError(
                f"{where} must be a floating-point tensor (N, C, H, W), got {_describe(images)}",
                hint="for 8-bit images divide by 255",
            )
        if not bool(images.isfinite().all()):
            raise UserError(
                f"{where} is not finite (NaN or infinity); no statistics were changed",
                hint="check how this batch's images were read",
            )
        self.shape = self.shape or images.shape
        problems, hints = [], []
        if images.shape != self.shape:
            problems.append(f"has shape {tuple(images.shape)}, the first batch {tuple(self.shape)}")
            hints.append("every batch counts the same, so leave a short last one out (drop_last=True)")
        low, high = float(images.min()), float(images.max())
        if low < 0 or high > 1:
            problems.append(f"spans [{low:.3g}, {high:.3g}], pixels are in [0, 1]")
            hints.append("give pixels, and mean and std as input_space")
        if len(images) == 1 and self.refuse_singletons:
            problems.append("is a single image, for which BatchNorm1d has no variance")
            hints.append("use a larger batch")
        elif low == high or (len(images) > 1 and bool((images == images[:1]).all())):
            problems.append("is constant: its images do not differ, so its variance is 0")
            hints.append("calibrate on real, different images")
        if problems:
            raise UserError(f"{where} " + "; it ".join(problems), hint="; ".join(hints))
        return images, labels


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}".replace("torch.", "")
    return type(value).__name__
