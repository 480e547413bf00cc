"""What a white-box attack makes larger; each gives loss (N,), logits (N, K) and ∂loss/∂image (N, C, H, W).

``cross_entropy``   −log softmax(z)_y
``margin``          z_t − z_y for a target class t: linear, so its gradient stays where softmax is 1
``dlr``             −(z_y − max_{i≠y} z_i) / (z_π1 − z_π3): no matter the logits' scale (Croce and Hein)
``targeted_dlr``    −(z_y − z_t) / (z_π1 − (z_π3 + z_π4) / 2)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

Array = np.ndarray[Any, Any]


class Slope(NamedTuple):
    """What one step of an attack needs.

    Attributes:
        loss: (N,), to be made larger.
        logits: (N, K).
        gradient: (N, C, H, W), of the loss.
    """

    loss: Array
    logits: Array
    gradient: Array


class Differentiable(Protocol):
    """A classifier with its gradient; see :class:`~.oracles.GradientSource`."""

    @property
    def num_classes(self) -> int:
        """K."""
        ...

    def of_label(self, images: Array, labels: Array) -> tuple[Array, Array]:
        """Logits, and the gradient of the cross-entropy."""
        ...

    def of_cotangent(
        self, images: Array, cotangents: Array | Callable[[Array], Array]
    ) -> tuple[Array, Array]:
        """Logits, and the gradient of their product with (N, K), or with what a function makes of them."""
        ...


@dataclasses.dataclass(frozen=True)
class Loss:
    """One of the losses, by name; a target is the ``rank``-th best wrong class of the original image.

    Attributes:
        name: ``cross_entropy``, ``margin``, ``dlr`` or ``targeted_dlr``.
        rank: Of the target, from 1; 0 for losses without one.
    """

    name: str
    rank: int = 0

    def targets(self, clean_logits: Array, labels: Array) -> Array:
        """(N,) the class that each image is pushed to; the labels themselves where there is no target."""
        if not self.rank:
            return labels
        wrong = clean_logits.astype(np.float64)
        wrong[np.arange(len(labels)), labels] = -np.inf
        return np.argsort(-wrong, axis=1, kind="stable")[:, self.rank - 1]

    def __call__(self, source: Differentiable, images: Array, labels: Array, targets: Array) -> Slope:
        """Of some images."""
        if self.name == "cross_entropy":
            logits, gradient = source.of_label(images, labels)
            return Slope(cross_entropy(logits, labels), logits, gradient)
        if self.name == "margin":  # linear: its slope is known before the logits are
            k = source.num_classes
            cotangents = np.eye(k)[targets] - np.eye(k)[labels]
            logits, gradient = source.of_cotangent(images, cotangents)
            return Slope(_linear(logits, labels, targets), logits, gradient)
        loss, slope = _LOSSES[self.name]
        logits, gradient = source.of_cotangent(images, lambda z: slope(z, labels, targets))
        return Slope(loss(logits, labels, targets), logits, gradient)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """(N,), in float64."""
    z = logits.astype(np.float64)
    shifted = z - z.max(1, keepdims=True)
    loss: Array = np.log(np.exp(shifted).sum(1)) - _at(shifted, labels)
    return loss


def margin(logits: Array, labels: Array) -> Array:
    """(N,) how much the label's logit is above the best other one: at most 0 for a misclassified image."""
    others = logits.astype(np.float64)
    own = _at(others, labels)
    others[np.arange(len(labels)), labels] = -np.inf
    left: Array = own - others.max(1)
    return left


def _linear(logits: Array, labels: Array, targets: Array) -> Array:
    ahead: Array = _at(logits, targets).astype(np.float64) - _at(logits, labels)
    return ahead


def _linear_slope(logits: Array, labels: Array, targets: Array) -> Array:
    return _one_hot(targets, logits) - _one_hot(labels, logits)


def _dlr(logits: Array, labels: Array, targets: Array) -> Array:
    z = logits.astype(np.float64)
    order = np.argsort(z, axis=1)
    return -margin(z, labels) / (_at(z, order[:, -1]) - _at(z, order[:, -3]) + 1e-12)


def _dlr_slope(logits: Array, labels: Array, targets: Array) -> Array:
    z = logits.astype(np.float64)
    order = np.argsort(z, axis=1)
    first, second, third = order[:, -1], order[:, -2], order[:, -3]
    other = np.where(first == labels, second, first)
    denominator = (_at(z, first) - _at(z, third) + 1e-12)[:, None]
    numerator = (_at(z, labels) - _at(z, other))[:, None]
    spread = _one_hot(first, z) - _one_hot(third, z)
    slope: Array = (
        _one_hot(other, z) - _one_hot(labels, z)
    ) / denominator + numerator * spread / denominator**2
    return slope


def _targeted_dlr(logits: Array, labels: Array, targets: Array) -> Array:
    z = logits.astype(np.float64)
    ordered = np.sort(z, axis=1)
    return _linear(z, labels, targets) / (ordered[:, -1] - (ordered[:, -3] + ordered[:, -4]) / 2 + 1e-12)


def _targeted_dlr_slope(logits: Array, labels: Array, targets: Array) -> Array:
    z = logits.astype(np.float64)
    order = np.argsort(z, axis=1)
    ordered = np.take_along_axis(z, order, 1)
    denominator = (ordered[:, -1] - (ordered[:, -3] + ordered[:, -4]) / 2 + 1e-12)[:, None]
    spread = _one_hot(order[:, -1], z) - _one_hot(order[:, -3], z) / 2 - _one_hot(order[:, -4], z) / 2
    return _linear_slope(z, labels, targets) / denominator - (
        _linear(z, labels, targets)[:, None] * spread / denominator**2
    )


_LOSSES = {
    "dlr": (_dlr, _dlr_slope),
    "targeted_dlr": (_targeted_dlr, _targeted_dlr_slope),
}
LEAST_CLASSES = {"cross_entropy": 2, "margin": 2, "dlr": 3, "targeted_dlr": 4}
"""Fewer logits than these leave a loss undefined."""


def _at(values: Array, index: Array) -> Array:
    return values[np.arange(len(index)), index]


def _one_hot(index: Array, like: Array) -> Array:
    return np.eye(like.shape[1])[index]
