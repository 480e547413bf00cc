"""A network as plain modules with plain parameters, however it was wrapped for training.

1. ``DataParallel``, ``DistributedDataParallel`` and what ``torch.compile`` returns hold the network itself.
2. Lazy modules have no parameters until they have seen an input.
3. Frozen BatchNorm (torchvision's ``FrozenBatchNorm2d``, and those named and built like it) is no BatchNorm
   to PyTorch, though its buffers have the same names: it becomes one, whose statistics can move.
4. ``weight_norm`` and ``spectral_norm``, by hooks or as parametrizations, compute a weight from others at
   every call. Its value is kept in their place.

A bundle holds the weights of the plain network, so what calibrates and what is rebuilt for export are brought
into this form alike.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

_FROZEN = ("weight", "bias", "running_mean", "running_var")
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside what parallel training and ``torch.compile`` put around it."""
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def materialise(model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Let lazy modules make their parameters, from a batch of zeros of an image's shape (C, H, W)."""
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        with torch.no_grad():
            model(torch.zeros(2, *shape))


def thawed(model: nn.Module) -> nn.Module:
    """The network with a BatchNorm in the place of every frozen one; in place, but for the network itself."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (layer := _thawed_layer(child)) is not None:
                setattr(parent, name, layer)
    return model


def _thawed_layer(module: nn.Module) -> nn.BatchNorm2d | None:
    """A BatchNorm that computes what a frozen one does; None for anything else."""
    buffers = dict(module.named_buffers(recurse=False))
    if "FrozenBatchNorm" not in type(module).__name__ or not buffers.keys() >= set(_FROZEN):
        return None
    frozen = [buffers[name] for name in _FROZEN]
    layer = nn.BatchNorm2d(len(frozen[0]), eps=float(getattr(module, "eps", 1e-5)))
    layer.load_state_dict(dict(zip(_FROZEN, frozen, strict=True)), strict=False)
    layer.eval().requires_grad_(False)
    trial = torch.randn(2, len(frozen[0]), 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same = torch.allclose(layer(trial), module(trial), rtol=1e-4, atol=1e-5)
    return layer if same else None  # one with an activation in it, for example


def fix_weights(model: nn.Module) -> None:
    """Put the value of every computed weight in its place, as a parameter; in place."""
    for module in list(model.modules()):
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
