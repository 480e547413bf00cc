"""Logits → the most probable classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..prediction import softmax
from .row import Ranked


def rank(
    logits: npt.NDArray[np.float32], classes: Sequence[str], top_k: int
) -> list[tuple[Ranked, ...] | None]:
    """The most probable classes of each image.

    Args:
        logits: (N, K).
        classes: K names.
        top_k: How many, at most K.

    Returns:
        N rankings, largest logit first, the lower index first among equals; ``None`` where a logit is not
        finite.
    """
    finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(logits).all(axis=1))
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    probabilities = np.zeros(order.shape)
    probabilities[finite] = np.take_along_axis(softmax(logits[finite]), order[finite], axis=1)
    return [
        tuple(map(Ranked, labels, (classes[label] for label in labels), probabilities[i].tolist()))
        if finite[i]
        else None
        for i, labels in enumerate(order.tolist())
    ]
