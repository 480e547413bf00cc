"""The adversarial samples that calibration sees: Eq. 3 of the paper, FGSM and PGD, against Φ0 in eval mode.

ε, step size and clipping are in pixels, [0, 1]: the pixels-to-network map is affine with a positive slope a
channel, so it changes no sign of a gradient, and a model that standardises its input is attacked by what an
image file can hold. A step is one forward and one backward pass; labels cost none, missing ones one forward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sad_runtime.errors import UserError
from sad_runtime.manifest import InputSpace

from .attack_config import Attack, AttackKind
from .classifier import standardized
from .saliency import evaluating, input_gradient, logits_of

__all__ = ["Attack", "AttackKind", "perturb"]


def perturb(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    attack: Attack,
    input_space: InputSpace,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adversarial images for ``model``, which runs in eval mode and is left as it was.

    Args:
        model: Φ0; maps the network's input space (N, C, H, W) to logits (N, K).
        images: (N, C, H, W) pixels in [0, 1].
        labels: (N,) class indices, or None for the model's own predictions.
        attack: What to do.
        input_space: Pixels to network input.
        generator: Source of PGD's random start, on the CPU; the same seed gives the same samples.

    Returns:
        (N, C, H, W) pixels in [0, 1]; within ε of ``images`` for FGSM and PGD.

    Raises:
        UserError: A label is not one of the model's classes.
    """
    images = images.detach()
    if attack.kind is AttackKind.NONE:
        return images.clone()
    std = images.new_tensor(input_space.std).reshape(-1, 1, 1)
    if labels is None:
        with torch.no_grad(), evaluating(model):
            labels = logits_of(model, standardized(images, input_space)).argmax(dim=1)
    checked = labels.to(images.device)

    def gradient(at: Tensor) -> Tensor:
        """∂ℓ/∂x of every sample's own cross-entropy, in the network's input space."""

        def loss(logits: Tensor) -> Tensor:
            _check_labels(checked, len(images), logits.shape[1])
            return F.cross_entropy(logits, checked.expand(len(logits)), reduction="none")

        return input_gradient(model, standardized(at, input_space), loss)[0]

    if attack.kind is AttackKind.EQ3:
        # δ is taken in the network's space, x = (image − mean)/std: adding it moves the image by std·δ.
        return (images + std * gradient(images)).clamp(0, 1)
    if attack.kind is AttackKind.FGSM:
        return (images + attack.epsilon * gradient(images).sign()).clamp(0, 1)
    adversarial = images
    if attack.random_start:
        noise = _noise(images, generator)
        adversarial = (images + attack.epsilon * (2 * noise.to(images.device) - 1)).clamp(0, 1)
    for _ in range(attack.steps):
        adversarial = adversarial + attack.alpha * gradient(adversarial).sign()
        adversarial = images + (adversarial - images).clamp(-attack.epsilon, attack.epsilon)
        adversarial = adversarial.clamp(0, 1)
    return adversarial


def pass_over_start(images: Tensor, attack: Attack, generator: torch.Generator) -> None:
    """Draw the random start of images that are not attacked, so that the next ones have theirs."""
    if attack.kind is AttackKind.PGD and attack.random_start:
        _noise(images, generator)


def _noise(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform in [0, 1), on the CPU, of the images' shape and type."""
    return torch.rand(images.shape, generator=generator, dtype=images.dtype)


def _check_labels(labels: Tensor, images: int, classes: int) -> None:
    """Refuse what is not one of the model's classes for every image."""
    if labels.shape != (images,) or not bool(((labels >= 0) & (labels < classes)).all()):
        raise UserError(
            f"labels must be {images} class indices of 0 … {classes - 1}, "
            f"got shape {tuple(labels.shape)} with {labels.min().item()} … {labels.max().item()}",
            hint="labels follow the order of the model's logits",
        )
