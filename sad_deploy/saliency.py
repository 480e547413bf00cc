"""Saliency, Eq. 2 of the paper: S(x) = ∂Φ_i*(x)/∂x with i* = argmax_i Φ_i(x), on logits, per sample.

Softmax saliency is not used: it is up to 300 times smaller and points elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from sad_runtime.choices import Normalization
from sad_runtime.errors import UserError


def saliency(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of every sample's largest logit with respect to that sample, in one backward pass.

    The model runs in eval mode (its modes are restored), its parameters receive no ``.grad``, and the
    caller may be inside ``torch.no_grad`` or ``torch.inference_mode``. A tie goes to the first maximum.

    Args:
        model: Φ; maps (N, C, H, W) to logits (N, K), each sample on its own.
        x: (N, C, H, W) in the network's input space.

    Returns:
        S, shaped as ``x``, and the logits (N, K); both detached.

    Raises:
        UserError: The model's output is not (N, K).
    """
    return input_gradient(model, x, lambda logits: logits.gather(1, logits.argmax(dim=1, keepdim=True)))


def input_gradient(
    model: nn.Module, x: Tensor, objective: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Every sample's own gradient of an objective by that sample: one forward, one backward pass.

    A single sample is computed as two equal ones: for a batch of one, PyTorch's gradient of BatchNorm in eval
    mode on the CPU is wrong where what comes back is laid out as channels last, as from behind
    ``flatten(2).transpose(1, 2)`` (seen in 2.14: relative errors of 1 to 3; a batch of two is right).

    Args:
        model: Φ; runs in eval mode, and its modes are restored.
        x: (N, C, H, W) in the network's input space.
        objective: Logits (M, K) to each sample's own values, M of them first; M is N, or 2 where N is 1.

    Returns:
        The gradient, shaped as ``x``, and the logits (N, K); both detached.

    Raises:
        UserError: The model's output is not (N, K).
    """
    pair = torch.cat([x, x]) if len(x) == 1 else x
    with evaluating(model), differentiable(pair) as leaf:
        logits = logits_of(model, leaf)
        # Samples do not interact in eval mode, so the gradient of the sum holds every sample's own.
        (gradient,) = torch.autograd.grad(objective(logits).sum(), leaf)
    return gradient[: len(x)], logits.detach()[: len(x)]


def normalize_saliency(s: Tensor, normalization: Normalization | str) -> Tensor:
    """Scale every sample's saliency as :class:`Normalization` says; a zero map stays zero.

    Args:
        s: (N, ...) saliency.
        normalization: ``none``: S. ``rms``: S / sqrt(mean S²). ``linf``: S / max |S|. ``sign``: sign S.

    Returns:
        A tensor shaped as ``s``.
    """
    normalization = Normalization(normalization)
    if normalization is Normalization.NONE:
        return s
    if normalization is Normalization.SIGN:
        return s.sign()
    # Dividing by the largest magnitude first keeps the squares of tiny and huge maps representable.
    s = _divide(s, s.abs().flatten(1).amax(dim=1))
    if normalization is Normalization.RMS:
        s = _divide(s, s.flatten(1).square().mean(dim=1).sqrt())
    return s


def _divide(s: Tensor, scale: Tensor) -> Tensor:
    """Divide sample n by ``scale[n]``, or by 1 where the scale is zero: no bias from an epsilon."""
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return s / scale.reshape(-1, *[1] * (s.dim() - 1))


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Run the model and check that it returned one row of logits per sample.

    It gets a copy, since some networks normalise their input in place: neither a leaf that a gradient is
    taken of, nor a batch that is used again, may change.

    Raises:
        UserError: The output is not a floating-point (N, K) tensor.
    """
    logits = model(x.clone())
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"the model must return logits of shape (N, K) = ({len(x)}, K), it returned {found}",
            hint="wrap it in a module whose forward returns the logits alone",
        )
    return logits


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode for a while, then give each its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def differentiable(x: Tensor) -> Iterator[Tensor]:
    """A leaf copy of ``x`` that requires a gradient, with recording on whatever the caller's mode."""
    with torch.inference_mode(False), torch.enable_grad():
        yield x.detach().clone().requires_grad_()
