"""An attack unit test (Zimmermann et al., NeurIPS 2022): plant a weakness, see whether attacks find it.

The last layer is replaced by one that tells a single point on the border of the threat from a thousand
random points inside. So there is an adversarial image, it is known, and random search within the threat does
not find it. Attacks that miss it say nothing about images in which they find nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from .attacks import Apgd, Problem
from .losses import cross_entropy
from .oracles import Array, GradientSource
from .threat import Threat

INNER = 999
"""Random points that must not be taken for the planted one."""

INNER_RADIUS = 0.95
"""How far they go, in parts of ε."""

_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Planted:
    """What came of it.

    Attributes:
        planted: Images in which a weakness could be planted.
        found: Images in which the attack found it.
    """

    planted: int
    found: int


def find_planted(
    features: GradientSource, images: Array, threat: Threat, *, steps: int, seed: int
) -> Planted:
    """Plant a weakness in each image, and attack it.

    Args:
        features: Graphs of the features before the last layer, along the way that is tested.
        images: (N, C, H, W), one by one.
        threat: What is allowed.
        steps: Of the attack, as in the evaluation.
        seed: Of all random numbers.
    """
    planted = found = 0
    for i, image in enumerate(images):
        rng = np.random.default_rng([seed, i])
        readout = _planted_in(features, image[None], threat, rng)
        if readout is None:
            continue
        planted += 1
        problem = Problem(image[None], np.zeros(1, np.int64), threat, readout.victim, [rng])
        found += int(Apgd(readout, steps=steps).run(problem).broken[0])
    return Planted(planted, found)


def _planted_in(
    features: GradientSource, image: Array, threat: Threat, rng: np.random.Generator
) -> _Readout | None:
    """A last layer that answers 1 for the planted point and what is like it; None if there is none."""
    inner_threat = dataclasses.replace(threat, epsilon=INNER_RADIUS * threat.epsilon)
    repeated = np.repeat(image, INNER, 0)
    inner = inner_threat.random_start(repeated, [rng] * INNER)
    inner = image + (inner - image) * rng.uniform(0, 1, (INNER, 1, 1, 1)).astype(np.float32)
    corner = np.sign(rng.normal(size=image.shape)).astype(np.float32)
    border = threat.project(image + np.float32(2 * threat.epsilon) * corner, image)
    at_inner = _features(features, np.concatenate([image, inner]))
    at_border = _features(features, border)[0]
    centred = at_inner - at_inner.mean(0)
    spread = centred.T @ centred / len(centred)
    ridge = 1e-3 * np.trace(spread) / len(spread) + 1e-12
    weight = np.linalg.solve(spread + ridge * np.eye(len(spread)), at_border - at_inner.mean(0))
    highest, planted = (at_inner @ weight).max(), float(at_border @ weight)
    if planted <= highest:
        return None
    scale = 10.0 / (planted - highest)
    return _Readout(features, scale * weight, -scale * (planted + highest) / 2)


def _features(source: GradientSource, images: Array) -> Array:
    zeros = np.zeros((min(_BATCH, len(images)), source.num_classes))
    parts = []
    for start in range(0, len(images), _BATCH):
        piece = images[start : start + _BATCH]
        parts.append(source.of_cotangent(piece, zeros[: len(piece)])[0])
    return np.concatenate(parts).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class _Readout:
    """A linear layer of two classes on features: logits (0, w·f + b)."""

    features: GradientSource
    weight: Array
    bias: float
    num_classes: int = 2

    def victim(self, images: Array) -> Array:
        """(N, 2)."""
        return self._logits(_features(self.features, images))

    def of_label(self, images: Array, labels: Array) -> tuple[Array, Array]:
        """Logits and the gradient of the cross-entropy."""
        found: list[Array] = []

        def cotangents(features: Array) -> Array:
            logits = self._logits(features.astype(np.float64))
            found.append(logits)
            ahead = np.exp(-cross_entropy(logits, np.ones(len(logits), np.int64)))  # the softmax of class 1
            slope: Array = (ahead - (labels == 1))[:, None] * self.weight
            return slope

        _, gradient = self.features.of_cotangent(images, cotangents)
        return found[0], gradient

    def of_cotangent(
        self, images: Array, cotangents: Array | Callable[[Array], Array]
    ) -> tuple[Array, Array]:
        """Logits, and the gradient of their product with (N, 2)."""
        logits = self.victim(images)
        given = cotangents(logits) if callable(cotangents) else cotangents
        _, gradient = self.features.of_cotangent(images, given[:, 1:] * self.weight)
        return logits, gradient

    def _logits(self, features: Array) -> Array:
        ahead: Array = features @ self.weight + self.bias
        return np.stack([np.zeros_like(ahead), ahead], 1)
