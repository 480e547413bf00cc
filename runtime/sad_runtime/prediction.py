"""What a two-pass graph returned for a batch, and what may be read from logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SUM_TOLERANCE = 1e-3
"""How far the sum of a row of probabilities in half precision may be from 1."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the two-pass graph returned for N images.

    Attributes:
        logits: (N, K), of the second pass: Φ1(x + η·S1(x)).
        saliency: (N, C, H, W), S1(x) unnormalised, in the network's input space; ``None`` if not asked for.
        plain_logits: (N, K), of the first pass, recalibrated; ``None`` if not asked for.
    """

    logits: npt.NDArray[np.float32]
    saliency: npt.NDArray[np.float32] | None = None
    plain_logits: npt.NDArray[np.float32] | None = None

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,): index of the largest logit, the first of equal ones."""
        return np.asarray(self.logits.argmax(axis=1), dtype=np.int64)

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """(N, K): softmax of the logits."""
        return softmax(self.logits)


def joined(parts: Sequence[Prediction]) -> Prediction:
    """Predictions of the same outputs, at least one, as one of all their images."""
    if len(parts) == 1:
        return parts[0]

    def together(name: str) -> npt.NDArray[np.float32] | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else np.concatenate(values)

    logits = np.concatenate([part.logits for part in parts])
    return Prediction(logits, together("saliency"), together("plain_logits"))


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Softmax over the last axis in float64, of any finite logits: exp(z − max z) / Σ exp(z − max z)."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True, initial=-np.inf)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def kind_of_probabilities(outputs: npt.NDArray[np.floating]) -> str | None:
    """Whether a network's outputs are probabilities instead of logits, as far as their numbers tell.

    Args:
        outputs: (N, K) of several images.

    Returns:
        ``probabilities`` (no row has a negative number, and each sums to 1), ``logarithms of probabilities``
        (the same of their exponentials), or None.
    """
    values = outputs.astype(np.float64)
    if values.ndim != 2 or not len(values) or values.shape[1] < 2 or not np.isfinite(values).all():
        return None
    if (values >= 0).all() and (abs(values.sum(1) - 1) < _SUM_TOLERANCE).all():
        return "probabilities"
    if (values <= 0).all() and (abs(np.exp(values).sum(1) - 1) < _SUM_TOLERANCE).all():
        return "logarithms of probabilities"
    return None
