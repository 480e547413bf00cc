"""BatchNorm layers of a model and their running statistics: found, checked, read, written, updated."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from sad_runtime.errors import UserError

from .shorten import shorten

Layers = Mapping[str, BatchNorm]
"""BatchNorm1d, 2d, 3d and SyncBatchNorm modules by their name in the model."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """The statistics of one layer.

    Attributes:
        mean: (C,) running mean.
        var: (C,) running variance.
        count: Batches tracked; a scalar.
    """

    mean: Tensor
    var: Tensor
    count: Tensor


def batchnorm_layers(model: nn.Module) -> dict[str, BatchNorm]:
    """All BatchNorm layers of a model that calibration can use.

    Raises:
        UserError: There is none, or some keep no running statistics; all of those are named.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BatchNorm)}
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no BatchNorm layer, so SAD has no statistics to calibrate",
            hint="use a network with BatchNorm, for example a ResNet; GroupNorm and LayerNorm keep none",
        )
    without = [
        name for name, layer in layers.items() if layer.running_mean is None or not layer.track_running_stats
    ]
    if without:
        raise UserError(
            f"{len(without)} of {len(layers)} BatchNorm layers keep no running statistics: "
            f"{shorten(without)}",
            hint="build the model with track_running_stats=True",
        )
    return layers


def read_statistics(layers: Layers) -> dict[str, Statistics]:
    """Copies of every layer's statistics."""
    found = {}
    for name, layer in layers.items():
        mean, var, count = _buffers(layer)
        found[name] = Statistics(mean.clone(), var.clone(), count.clone())
    return found


def write_statistics(layers: Layers, statistics: Mapping[str, Statistics]) -> None:
    """Copy statistics into the layers; layers not named keep theirs."""
    with torch.no_grad():
        for name, saved in statistics.items():
            mean, var, count = _buffers(layers[name])
            mean.copy_(saved.mean)
            var.copy_(saved.var)
            count.copy_(saved.count)


def _buffers(layer: BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    mean, var, count = layer.running_mean, layer.running_var, layer.num_batches_tracked
    if mean is None or var is None or count is None:
        raise UserError("a BatchNorm layer keeps no running statistics")
    return mean, var, count


def relative_shift(before: Mapping[str, Statistics], after: Mapping[str, Statistics]) -> float:
    """‖after − before‖ / ‖before‖ over the running means and variances of all layers together."""
    moved = norm = 0.0
    for name, old in before.items():
        new = after[name]
        for a, b in ((old.mean, new.mean), (old.var, new.var)):
            moved += float((b.double() - a.double()).square().sum())
            norm += float(a.double().square().sum())
    return float((moved / norm) ** 0.5) if norm else float("inf")


def update_statistics(model: nn.Module, layers: Layers, x: Tensor, *, momentum: float | None) -> None:
    """One forward pass that moves the running statistics of ``layers`` and nothing else, or nothing at all.

    Only these layers are in train mode during the pass, so dropout is off; there is no gradient step.

    Args:
        model: The network in which the layers live.
        layers: The layers to move.
        x: (N, C, H, W) in the network's input space.
        momentum: None for the cumulative average over updates, or the weight of this batch.

    Raises:
        UserError: The pass failed for one value a channel, or a statistic became non-finite; every
            statistic is then as it was before.
    """
    before = read_statistics(layers)
    try:
        with torch.no_grad(), _training_only(model, layers, momentum):
            try:
                model(x.clone())  # some networks change their input in place
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise UserError(
                    f"a BatchNorm layer saw one value per channel (batch of {len(x)}): no variance",
                    hint="use a larger batch",
                ) from error
        broken = [name for name, layer in layers.items() if not _finite(layer)]
        if broken:
            raise UserError(
                f"the statistics of {shorten(broken)} became non-finite; they were left unchanged",
                hint="check the weights for NaN, or use a smaller eta",
            )

    except BaseException:
        write_statistics(layers, before)
        raise


def _finite(layer: BatchNorm) -> bool:
    mean, var, _ = _buffers(layer)
    return bool(mean.isfinite().all() and var.isfinite().all())


@contextlib.contextmanager
def _training_only(model: nn.Module, layers: Layers, momentum: float | None) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(layer, layer.momentum) for layer in layers.values()]
    model.eval()
    for layer in layers.values():
        layer.training = True
        layer.momentum = momentum
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for layer, old in momenta:
            layer.momentum = old


@contextlib.contextmanager
def recording_use(layers: Layers) -> Iterator[set[str]]:
    """Collect the names of the layers that a forward pass inside the context reaches."""
    reached: set[str] = set()
    handles = [
        layer.register_forward_hook(lambda *_, name=name: reached.add(name)) for name, layer in layers.items()
    ]
    try:
        yield reached
    finally:
        for handle in handles:
            handle.remove()
