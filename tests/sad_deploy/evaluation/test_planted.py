"""The attack unit test must tell an attack that works from one that does not."""

from __future__ import annotations

import numpy as np
import pytest

from sad_deploy.evaluation.evaluate import DEFENDED
from sad_deploy.evaluation.oracles import Array, Counts, GradientSource
from sad_deploy.evaluation.planted import find_planted
from sad_deploy.evaluation.threat import Threat

from .conftest import Digits


class Blind(GradientSource):
    """Its gradients have nothing to do with the network."""

    def _run(self, name: str, images: Array, seed: Array) -> tuple[Array, Array]:
        logits, gradient = super()._run(name, images, seed)
        return logits, np.random.default_rng(0).normal(size=gradient.shape).astype(np.float32)


@pytest.mark.parametrize(("kind", "least", "most"), [(GradientSource, 4, 4), (Blind, 0, 1)])
def test_a_gradient_finds_it_and_noise_does_not(
    digits: Digits, kind: type[GradientSource], least: int, most: int
) -> None:
    features = digits.subjects[DEFENDED].features
    assert features is not None
    source = kind(features, features, Counts())
    found = find_planted(source, digits.images.pixels[:4], Threat(0.1), steps=20, seed=0)
    assert found.planted == 4 and least <= found.found <= most
