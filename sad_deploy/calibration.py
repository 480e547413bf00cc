"""Algorithm 1 of the paper: Φ0 → Φ1, the same weights with statistics of salient adversarial images.

For every batch: x_adv = attack(Φ0, x, y); x_sadv = clip(x_adv + η·n(S0(x_adv))); forward x_sadv with only the
BatchNorm layers in train mode. x_adv and S0 come from the frozen Φ0 and do not depend on η, so several η are
calibrated in one run over the batches: per η only its statistics are kept, never the samples. Memory beyond
one batch is two copies of the model and, per η, a few floats a channel.

Several processes divide the batches: see :mod:`.processes`. What was done before an interruption is taken up
again: see :mod:`.kept_state`. Either way a process goes over all batches, so that each has its own noise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import BatchNorm1d

from sad_runtime.choices import Normalization
from sad_runtime.errors import UserError
from sad_runtime.manifest import InputSpace

from .attacks import Attack, pass_over_start, perturb
from .batch_checks import Batch, BatchChecks
from .batchnorm import batchnorm_layers, recording_use
from .classifier import Clip, check_eta, standardized
from .fold import fold_batchnorm
from .kept_state import NOT_KEPT, Keeper
from .probabilities import refuse_probabilities
from .saliency import saliency
from .sweep import Calibration, CalibrationSettings, CalibrationSweep

Progress = Callable[[int], None]
"""Called after every batch with the number of batches done."""

Grid = Callable[[Tensor, InputSpace], Sequence[float]]
"""From S0 of the first adversarial batch (N, C, H, W) and its input space to the η to calibrate for."""


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
    keeper: Keeper = NOT_KEPT,
) -> CalibrationSweep:
    """Algorithm 1 for several η in one run: one attack and one S0 a batch, then one forward pass an η.

    Args:
        model: As in :func:`calibrate`; not modified.
        batches: As in :func:`calibrate`.
        etas: The hybridization ratios.
        settings: Everything else.
        progress: Told after every batch.
        keeper: Of the state in between, and of the processes that divide the batches among them; each of
            these is given all batches.

    Returns:
        The statistics for every η, settled.

    Raises:
        UserError: As :func:`calibrate`.
    """
    run = CalibrationRun(model, etas, settings, keeper)
    for batch in batches:
        run.add(batch)
        if progress is not None:
            progress(run.sweep.batches)
        if run.is_enough():
            break
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
        keeper: Of the state in between, and of the processes that divide the batches among them.
    """

    def __init__(
        self,
        model: nn.Module,
        etas: Sequence[float] | Grid,
        settings: CalibrationSettings,
        keeper: Keeper = NOT_KEPT,
    ) -> None:
        self.sweep = CalibrationSweep(model, settings, keeper.processes)
        self._etas = etas if callable(etas) else tuple(map(check_eta, etas))
        self._processes, self._keeper = keeper.processes, keeper
        self._phi0 = copy.deepcopy(model).eval().requires_grad_(False)
        layers = batchnorm_layers(self._phi0)
        single = any(isinstance(layer, BatchNorm1d) for layer in layers.values())
        self._checks = BatchChecks(refuse_singletons=single)
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._layout = torch.contiguous_format

    def add(self, batch: Batch) -> None:
        """Update the statistics for every η, or pass over a batch that need not be done here.

        Raises:
            UserError: The batch is unusable; it is named, and no statistics have changed.
        """
        index = self.sweep.batches
        images, labels = self._checks.checked(index, batch)
        like = next((p for p in self._phi0.parameters() if p.is_floating_point()), torch.zeros(()))
        images = images.to(like.device, like.dtype)
        space = self.sweep.settings.input_space or _pixels(images)
        is_first = index == self._processes.rank
        reached = self._prepare(standardized(images, space)) if is_first else set()
        if index < self._keeper.done or not self._processes.takes(index):
            if is_first:
                self.sweep.start(self._keeper.etas, reached)
                self.sweep.restore(self._keeper.state)
            pass_over_start(images, self.sweep.settings.attack, self._generator)
            self.sweep.pass_over(len(images))
        else:
            self._add(images, labels, space, reached if is_first else None)
        if (index + 1) % self._processes.count == 0 and index >= self._keeper.done:
            self._keeper.after(self.sweep)

    def _add(
        self, images: Tensor, labels: Tensor | None, space: InputSpace, reached: set[str] | None
    ) -> None:
        """One batch of this process' own; ``reached`` with the first."""
        settings, index = self.sweep.settings, self.sweep.batches
        images = images.contiguous(memory_format=self._layout)
        adversarial = perturb(self._phi0, images, labels, settings.attack, space, generator=self._generator)
        x_adv = standardized(adversarial, space)
        s0, _ = saliency(self._phi0, x_adv)
        if reached is not None:
            etas = self._etas(s0, space) if callable(self._etas) else self._etas
            self.sweep.start(self._processes.gather(etas)[0], reached)
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

    def is_enough(self) -> bool:
        """Whether the statistics have converged as far as is asked for, which is looked at once a round."""
        done, count = self.sweep.batches, self._processes.count
        return done % count == 0 and done >= self._keeper.done and self.sweep.is_converged()

    def finish(self) -> CalibrationSweep:
        """The statistics, settled, if they are of at least two batches.

        Raises:
            UserError: They are not.
        """
        if self.sweep.batches < 2:
            raise UserError(
                f"calibration needs at least two batches, got {self.sweep.batches}",
                hint="use more images or a smaller batch size",
            )
        self.sweep.settle()
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
