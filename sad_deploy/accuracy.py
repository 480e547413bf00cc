"""Clean accuracy, and the number of images and the reference that go with every figure."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from sad_runtime.errors import UserError
from sad_runtime.intervals import paired_difference, wilson
from sad_runtime.manifest import InputSpace

from .batch_checks import Batch
from .classifier import standardized
from .processes import ALONE, Processes
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

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of it, in percent."""
        return wilson(self.correct, self.images)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A contender beside Φ0 on the same images.

    Attributes:
        accuracy: The contender's.
        lost: Images that Φ0 has right and the contender wrong.
        gained: The other way round.
    """

    accuracy: CleanAccuracy
    lost: int
    gained: int

    @property
    def drop(self) -> float:
        """Accuracy lost, in points."""
        return 100 * (self.lost - self.gained) / self.accuracy.images

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the drop, in points."""
        return paired_difference(self.lost, self.gained, self.accuracy.images)


Predictor = Callable[[Tensor], Tensor]
"""Network input (N, C, H, W) to logits (N, K)."""


def clean_accuracy(
    phi0: nn.Module,
    contenders: Callable[[], Iterable[Predictor]],
    batches: Iterable[Batch],
    input_space: InputSpace | None,
    processes: Processes = ALONE,
) -> tuple[CleanAccuracy, list[Comparison]]:
    """Accuracy of Φ0 alone and of every contender, on the same images, in one run over them.

    Args:
        phi0: The uncalibrated model; its predictions stand in for labels where a batch has none.
        contenders: Called once a batch; gives the predictors one after the other, so that they may share
            weights.
        batches: Pixels in [0, 1], with labels or without, the same way throughout; sizes may differ.
        input_space: Pixels to network input; None when the network takes pixels as they are.
        processes: That divide the batches among them; all get the same result.

    Returns:
        Φ0's accuracy, and the contenders beside it in their order.

    Raises:
        UserError: There are no images.
    """
    like = next((p for p in phi0.parameters() if p.is_floating_point()), torch.zeros(()))
    images_seen = plain_correct = 0
    counts: list[tuple[int, int, int]] = []
    reference = Reference.LABELS
    for index, batch in enumerate(batches):
        if not processes.takes(index):
            continue
        images, labels = batch if isinstance(batch, (tuple, list)) else (batch, None)
        images = images.to(like.device, like.dtype)
        x = images if input_space is None else standardized(images, input_space)
        with torch.no_grad(), evaluating(phi0):
            plain = logits_of(phi0, x).argmax(dim=1)
        if labels is None:
            reference = Reference.PLAIN_PREDICTIONS
            labels = plain
        labels = labels.to(like.device)
        right = plain == labels
        counts = _added(
            counts, [_counted(right, predict(x).argmax(dim=1) == labels) for predict in contenders()]
        )
        plain_correct += int(right.sum())
        images_seen += len(x)
    everywhere = processes.gather((images_seen, plain_correct, counts, reference))
    images_seen = sum(seen for seen, _, _, _ in everywhere)
    plain_correct = sum(correct for _, correct, _, _ in everywhere)
    counts = functools.reduce(_added, [found for _, _, found, _ in everywhere])
    reference = max((against for _, _, _, against in everywhere), key=list(Reference).index)
    if not images_seen:
        raise UserError("there are no images to measure clean accuracy on", hint="hold some out")
    return CleanAccuracy(plain_correct, images_seen, reference), [
        Comparison(CleanAccuracy(correct, images_seen, reference), lost, gained)
        for correct, lost, gained in counts
    ]


def _added(a: list[tuple[int, int, int]], b: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Counts of the same contenders, or of none, together."""
    if not a or not b:
        return a or b
    return [(p + s, q + t, r + u) for (p, q, r), (s, t, u) in zip(a, b, strict=True)]


def _counted(plain: Tensor, contender: Tensor) -> tuple[int, int, int]:
    """Right answers of the contender, those it loses and those it gains, of two (N,) of truth values."""
    return int(contender.sum()), int((plain & ~contender).sum()), int((contender & ~plain).sum())
