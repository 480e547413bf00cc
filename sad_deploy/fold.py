"""Fold BatchNorm into the layer in front of it, for deployment.

With the scale a = γ/sqrt(σ² + ε), a BatchNorm after y = W·x + b leaves W' = a·W, b' = a·(b − μ) + β. All
of it is computed in float64, then cast. The pairs are found in the traced dataflow (torch.fx), not in the
order of definition:

1. Conv1d/2d/3d or ConvTranspose1d/2d/3d whose output goes to one BatchNorm and nowhere else, both called
   once: folded; the BatchNorm becomes ``nn.Identity``.
2. Linear in front of BatchNorm1d, likewise, if the dataflow shows that its input is (N, F): with (N, L, F)
   the BatchNorm would normalise L.
3. Every other BatchNorm (before a convolution, as in pre-activation networks; after a concatenation; not
   reached; in a model that fx cannot trace): a per-channel affine y = a·x + (β − a·μ). It cannot move into a
   convolution that follows it, because that one pads with zeros after the affine.
4. A subclass of BatchNorm with a ``forward`` of its own, or a BatchNorm whose parameters the model also reads
   elsewhere, is left as it is.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd as ConvTranspose

from .batchnorm import batchnorm_layers

Weighted = (
    nn.Conv1d
    | nn.Conv2d
    | nn.Conv3d
    | nn.ConvTranspose1d
    | nn.ConvTranspose2d
    | nn.ConvTranspose3d
    | nn.Linear
)

_FOLDABLE = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.ConvTranspose1d: nn.BatchNorm1d,
    nn.ConvTranspose2d: nn.BatchNorm2d,
    nn.ConvTranspose3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}
_KNOWN_FORWARDS = (BatchNorm.forward, nn.SyncBatchNorm.forward)
_KEEPS_RANK = (nn.Linear, BatchNorm, nn.Dropout, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Identity)
_RANK_KEEPING_FUNCTIONS: frozenset[Any] = frozenset({torch.relu, F.relu, F.dropout, "relu"})


class ChannelAffine(nn.Module):
    """y = scale·x + shift per channel, for x (N, C, ...): a BatchNorm in eval mode that could not be folded.

    Args:
        scale: (C,).
        shift: (C,).
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the affine to (N, C, ...), which is named as BatchNorm names it, for calls by keyword."""
        shape = (1, -1) + (1,) * (input.dim() - 2)
        return input * self.scale.reshape(shape) + self.shift.reshape(shape)


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy of the model, in eval mode, in which no BatchNorm is left (see the module's case 4).

    Args:
        model: Any module; not modified. Without BatchNorm the copy is the same network.

    Returns:
        The folded copy: equal logits up to rounding (relative error about 1e-6 in float32).

    Raises:
        UserError: A BatchNorm keeps no running statistics; all such layers are named.
    """
    folded = copy.deepcopy(model).eval()
    if not any(isinstance(module, BatchNorm) for module in folded.modules()):
        return folded
    layers = batchnorm_layers(folded)
    replacements: dict[nn.Module, nn.Module] = {}
    dataflow = _dataflow(folded)
    for weighted, norm in dataflow.pairs:
        replacements[weighted] = _folded(weighted, norm)
        replacements[norm] = nn.Identity()
    for layer in layers.values():
        replaceable = type(layer).forward in _KNOWN_FORWARDS and layer not in dataflow.read_directly
        if layer not in replacements and replaceable:
            scale, shift = _scale_and_shift(layer)
            dtype = layer.running_mean.dtype if layer.weight is None else layer.weight.dtype
            replacements[layer] = ChannelAffine(scale.to(dtype), shift.to(dtype))
    return _replace(folded, replacements).eval()


def _replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    if model in replacements:
        return replacements[model]
    for parent in list(model.modules()):
        # Also every further name of a module that is registered more than once.
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
    return model


def _scale_and_shift(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale a = γ/sqrt(σ² + ε) and shift β − a·μ, in float64."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None  # checked by batchnorm_layers
    scale = (var.detach().double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -scale * mean.detach().double()
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift


def _folded(weighted: Weighted, norm: BatchNorm) -> nn.Module:
    scale, shift = _scale_and_shift(norm)
    weight = weighted.weight.detach().double()
    if isinstance(weighted, ConvTranspose):
        # (C_in, C_out/groups, ...): output channels run over groups first.
        groups = weighted.groups
        grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        by_group = scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
        new_weight = (grouped * by_group).reshape(weight.shape)
    else:
        new_weight = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    new_bias = shift if weighted.bias is None else shift + scale * weighted.bias.detach().double()
    # A module of its own: the parameters may be shared with a layer that is not folded.
    result = copy.copy(weighted)
    result._parameters = dict(weighted._parameters)
    flag = weighted.weight.requires_grad
    result.weight = nn.Parameter(new_weight.to(weighted.weight.dtype), requires_grad=flag)
    result.bias = nn.Parameter(new_bias.to(weighted.weight.dtype), requires_grad=flag)
    return result


@dataclasses.dataclass(frozen=True)
class _Dataflow:
    """Pairs to fold, and modules whose parameters are read outside their own call."""

    pairs: list[tuple[Any, BatchNorm]]
    read_directly: set[nn.Module]


def _dataflow(model: nn.Module) -> _Dataflow:
    """Cases 1 and 2, found by tracing; nothing if the model cannot be traced."""
    try:
        graph = torch.fx.Tracer().trace(model)
    except Exception:
        # fx gives up in as many ways as there is Python (control flow on values, len(), custom types): case 3
        # is then right for every layer.
        return _Dataflow([], set())
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = Counter(modules[str(node.target)] for node in graph.nodes if node.op == "call_module")
    # A parameter read outside its module's call shows as get_attr "name.weight".
    read_directly = {
        modules[str(node.target).rpartition(".")[0]] for node in graph.nodes if node.op == "get_attr"
    }
    pairs = []
    for node in graph.nodes:
        norm = modules[str(node.target)] if node.op == "call_module" else None
        if not isinstance(norm, BatchNorm) or len(node.args) != 1:
            continue
        before = node.args[0]
        if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        weighted = modules[str(before.target)]
        used_once = all(calls[m] == 1 and m not in read_directly and not _hooked(m) for m in (weighted, norm))
        value = before.args[0] if before.args else None  # None also where it is given by keyword
        flat = not isinstance(weighted, nn.Linear) or _is_flat(value, modules)
        if used_once and flat and _matches(weighted, norm):
            pairs.append((weighted, norm))
    return _Dataflow(pairs, read_directly)


def _matches(weighted: nn.Module, norm: BatchNorm) -> bool:
    # Exact types: a subclass (weight-standardised, parametrised) computes something else.
    expected = _FOLDABLE.get(type(weighted))
    return expected is not None and (type(norm) is expected or type(norm) is nn.SyncBatchNorm)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _is_flat(value: object, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the dataflow shows that a value is (N, F)."""
    while isinstance(value, torch.fx.Node):
        first = value.args[0] if value.args else None
        if value.op == "call_module":
            module = modules[str(value.target)]
            if isinstance(module, nn.Flatten):
                return module.start_dim == 1 and module.end_dim == -1
            if not isinstance(module, _KEEPS_RANK):
                return False
        elif _is_flatten(value):
            return True
        elif value.target not in _RANK_KEEPING_FUNCTIONS:
            return False
        value = first
    return False


def _is_flatten(node: torch.fx.Node) -> bool:
    if node.target not in (torch.flatten, "flatten"):
        return False
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
    return bool(start == 1 and end == -1)
