from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sad_deploy.evaluation.threat import Threat, parse_epsilon
from sad_runtime.choices import Norm
from sad_runtime.errors import UserError

NORMS = st.sampled_from(list(Norm))


def images(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (3, 1, 4, 4)) / np.float32(255)).astype(np.float32)


@given(st.integers(0, 1000), st.floats(1e-3, 0.9), NORMS)
@settings(deadline=None)
def test_what_is_projected_started_or_rounded_is_allowed(seed: int, epsilon: float, norm: Norm) -> None:
    threat, origin = Threat(epsilon, norm), images(seed)
    anywhere = origin + np.random.default_rng(seed).normal(0, 1, origin.shape).astype(np.float32)
    projected = threat.project(anywhere, origin)
    assert threat.allows(projected, origin).all()
    np.testing.assert_allclose(threat.project(projected, origin), projected, atol=1e-6)
    start = threat.random_start(origin, [np.random.default_rng(i) for i in range(3)])
    assert threat.allows(start, origin).all() and (start != origin).any()
    if norm is Norm.LINF:
        rounded = threat.rounded(projected, origin)
        assert threat.allows(rounded, origin).all()
        np.testing.assert_allclose(np.rint(rounded * 255), rounded * 255, atol=1e-4)


def test_a_point_outside_is_not_allowed() -> None:
    threat, origin = Threat(0.1), images(0) * 0.5 + 0.25
    assert not threat.allows(origin + np.float32(0.11), origin).any()
    assert not threat.allows(np.full_like(origin, 1.01), origin).any()


def test_below_a_grey_level_rounding_gives_the_original_back() -> None:
    threat, origin = Threat(0.3 / 255), images(1)
    moved = threat.project(origin + 1, origin)
    np.testing.assert_allclose(threat.rounded(moved, origin), origin, atol=1e-6)


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), (" 4 / 255", 4 / 255)])
def test_epsilon_is_read(text: str, value: float) -> None:
    assert parse_epsilon(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["eight", "1/0", ""])
def test_what_is_no_number_is_said(text: str) -> None:
    with pytest.raises(UserError, match="epsilon must be a number"):
        parse_epsilon(text)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf"), 8.0])
def test_an_epsilon_out_of_range_is_refused(epsilon: float) -> None:
    with pytest.raises(UserError, match="epsilon"):
        Threat(epsilon)
