"""What a batch must be to calibrate on, checked before anything runs on it."""

from __future__ import annotations

import torch
from torch import Tensor

from sad_runtime.errors import UserError

Batch = Tensor | tuple[Tensor, Tensor | None]
"""Pixels (N, C, H, W) in [0, 1], alone or with class indices (N,)."""


class BatchChecks:
    """Of the batches of one calibration.

    Args:
        refuse_singletons: Whether a batch of one image has no variance, as for BatchNorm1d.
    """

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
