"""The SAD classifier in PyTorch: y = Φ1(clip(x + η·n(S1(x)))), two passes over one set of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sad_runtime.choices import Normalization, Way, choose
from sad_runtime.errors import UserError
from sad_runtime.manifest import InputSpace

from .saliency import logits_of, normalize_saliency, saliency

Bound = float | Sequence[float]
"""One bound for all channels, or one a channel."""

Clip = tuple[Bound, Bound]
"""(low, high) of the input, in the network's input space; ``InputSpace.pixel_range`` is one."""


class Defended(NamedTuple):
    """All that the two passes give.

    Attributes:
        logits: (N, K) of the second pass, on x + η·n(S).
        saliency: (N, C, H, W), S before normalisation, in the network's input space.
        plain_logits: (N, K) of the first pass, on x.
    """

    logits: Tensor
    saliency: Tensor
    plain_logits: Tensor


class Standardize(nn.Module):
    """Pixels in [0, 1] to the network's input: x = (image − mean) / std, per channel.

    Args:
        mean: One value a channel.
        std: One positive value a channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise UserError(f"mean and std need one value a channel, std positive; got {mean} and {std}")
        # Persistent would put them into a state dict that a checkpoint of the bare network lacks.
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map (N, C, H, W) pixels in [0, 1] to the network's input space."""
        return (image - self.mean) / self.std


def standardized(images: Tensor, space: InputSpace) -> Tensor:
    """Network input x = (image − mean) / std for pixels (N, C, H, W) in [0, 1].

    Raises:
        UserError: The images do not have one channel per mean value.
    """
    if images.shape[1] != len(space.mean):
        raise UserError(
            f"the images have {images.shape[1]} channels, mean and std have {len(space.mean)} values",
            hint="give one mean and one std value a channel",
        )
    mean, std = (images.new_tensor(values).reshape(-1, 1, 1) for values in (space.mean, space.std))
    return (images - mean) / std


class SADClassifier(nn.Module):
    """Φ1 behind its own saliency. Building one puts ``model`` in eval mode.

    Inputs are in the network's input space; for pixels, put :class:`Standardize` in front.

    Args:
        model: Φ1, calibrated; maps (N, C, H, W) to logits (N, K).
        eta: Hybridization ratio η ≥ 0.
        normalization: How S is scaled before η.
        clip: Bounds of x + η·n(S), or None for the paper's unbounded sum.
        differentiable: None: logits are detached. For attacks by other libraries, ``constant`` or ``exact``:
            logits can be differentiated with respect to x, with S held constant or through S too.

    Raises:
        UserError: η is negative or not finite, the clip's low is not below its high, or another word.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eta: float,
        normalization: Normalization | str = Normalization.NONE,
        clip: Clip | None = None,
        differentiable: Way | str | None = None,
    ) -> None:
        super().__init__()
        if differentiable is not None and choose(Way, differentiable, "way to differentiate") is Way.PLAIN:
            raise UserError("the plain way is that of the model itself", hint="attack the model in its place")
        self.differentiable = None if differentiable is None else Way(differentiable)
        self.model = model
        self.eta = check_eta(eta)
        self.normalization = Normalization(normalization)
        self.clip = check_clip(clip)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of the second pass for ``x`` (N, C, H, W)."""
        return self.defend(x).logits if self.differentiable is None else self._attacked(x)

    def _attacked(self, x: Tensor) -> Tensor:
        """Logits with a graph of their gradient by x, also where S is differentiated."""
        self._refuse_training()
        with torch.enable_grad():
            if self.differentiable is Way.CONSTANT:
                s, _ = saliency(self.model, x.detach())
            else:
                if not x.requires_grad:
                    x = x.detach().requires_grad_()
                plain = logits_of(self.model, x)
                largest = plain.gather(1, plain.argmax(dim=1, keepdim=True)).sum()
                (s,) = torch.autograd.grad(largest, x, create_graph=True)
            salient = add_saliency(x, s, eta=self.eta, normalization=self.normalization, clip=self.clip)
            return logits_of(self.model, salient)

    def defend(self, x: Tensor) -> Defended:
        """Logits of both passes and the saliency between them, for ``x`` (N, C, H, W); all detached.

        Raises:
            UserError: A part of the model is in training mode, so its answer would depend on the batch.
        """
        self._refuse_training()
        s, plain_logits = saliency(self.model, x)
        with torch.no_grad():
            salient = add_saliency(x, s, eta=self.eta, normalization=self.normalization, clip=self.clip)
            return Defended(logits_of(self.model, salient), s, plain_logits)

    def _refuse_training(self) -> None:
        modes = [name or "(the model)" for name, module in self.model.named_modules() if module.training]
        if modes:
            raise UserError(
                f"SADClassifier only infers, but {modes[0]} is in training mode",
                hint="call .eval() before using it",
            )

    def extra_repr(self) -> str:
        """What ``print`` shows of this module."""
        return f"eta={self.eta}, normalization={self.normalization.value}, clip={self.clip}"


def add_saliency(
    x: Tensor, s: Tensor, *, eta: float, normalization: Normalization, clip: Clip | None
) -> Tensor:
    """clip(x + η·n(S)): what calibration and inference both feed to the network.

    Args:
        x: (N, C, H, W) in the network's input space.
        s: S(x), shaped as ``x``.
        eta: Hybridization ratio.
        normalization: n.
        clip: Bounds, or None.

    Returns:
        A tensor shaped as ``x``.
    """
    salient = x + eta * normalize_saliency(s, normalization)
    if clip is None:
        return salient
    low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device).reshape(-1, 1, 1) for bound in clip)
    return torch.minimum(torch.maximum(salient, low), high)


def check_eta(eta: float) -> float:
    """Return η if it is a finite number of at least 0, else raise :class:`UserError`."""
    if not math.isfinite(eta) or eta < 0:
        raise UserError(f"eta must be a finite number of at least 0, got {eta}")
    return float(eta)


def check_clip(clip: Clip | None) -> Clip | None:
    """Return the bounds if every low is below its high, else raise :class:`UserError`."""
    if clip is not None:
        low, high = (torch.as_tensor(bound, dtype=torch.float64).reshape(-1) for bound in clip)
        if len(low) != len(high) or not bool((low < high).all()):
            raise UserError(f"clip needs (low, high) with low below high for every channel, got {clip}")
    return clip
