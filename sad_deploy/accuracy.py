"""Clean accuracy, and the number of images and the reference that go with every figure."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from sad_runtime.manifest import InputSpace

from .calibration import Batch
from .classifier import standardized
from .saliency import evaluating, logits_of


class Reference(enum.StrEnum):
    """What a prediction is compared with: the images' labels, or Φ0's predictions where there are none."""

    LABELS = "labels"
    PLAIN_PREDICTIONS = "predictions of the uncalibrated model"


@dataclasses.dataclass(frozen=True)
class CleanAccuracy:
    """Correct predictions on unattacked images.

    Attributes:
        correct: How many agree with the reference.
        images: Out of how many.
        reference: What they were compared with.
    """

    correct: int
    images: int
    reference: Reference

    @property
    def percent(self) -> float:
        """100 · correct / images."""
        return 100 * self.correct / self.images


Predictor = Callable[[Tensor], Tensor]
"""Network input (N, C, H, W) to logits (N, K)."""


def clean_accuracy(
    phi0: nn.Module,
    contenders: Callable[[], Iterable[Predictor]],
    batches: Iterable[Batch],
    input_space: InputSpace | None,
) -> tuple[CleanAccuracy, list[CleanAccuracy]]:
    """Accuracy of Φ0 alone and of every contender, on the same images, in one run over them.

    Args:
        phi0: The uncalibrated model; its predictions stand in for labels where a batch has none.
        contenders: Called once a batch; gives the predictors one after the other, so that they may share
            weights.
        batches: Pixels in [0, 1], with labels or without, the same way throughout; sizes may differ.
        input_space: Pixels to network input; None when the network takes pixels as they are.

    Returns:
        Φ0's accuracy and the contenders', in their order.
    """
    like = next((p for p in phi0.parameters() if p.is_floating_point()), torch.zeros(()))
    images_seen = plain_correct = 0
    correct: list[int] = []
    reference = Reference.LABELS
    for batch in batches:
        images, labels = batch if isinstance(batch, (tuple, list)) else (batch, None)
        images = images.to(like.device, like.dtype)
        x = images if input_space is None else standardized(images, input_space)
        with torch.no_grad(), evaluating(phi0):
            plain = logits_of(phi0, x).argmax(dim=1)
        if labels is None:
            reference = Reference.PLAIN_PREDICTIONS
            labels = plain
        labels = labels.to(like.device)
        hits = [int((predict(x).argmax(dim=1) == labels).sum()) for predict in contenders()]
        correct = [a + b for a, b in zip(correct or [0] * len(hits), hits, strict=True)]
        plain_correct += int((plain == labels).sum())
        images_seen += len(x)
    counts: Sequence[int] = (plain_correct, *correct)
    plain_accuracy, *others = (CleanAccuracy(count, images_seen, reference) for count in counts)
    return plain_accuracy, others
