from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from sad_runtime.intervals import clopper_pearson, mcnemar, paired_difference, wilson


def test_wilson_solves_its_equation():
    """Its ends are the p for which the count seen is 1.96 standard deviations away."""
    for correct, images in ((80, 100), (3, 7), (299, 300)):
        for end in wilson(correct, images):
            p = end / 100
            assert abs(correct / images - p) == pytest.approx(
                1.96 * math.sqrt(p * (1 - p) / images), rel=1e-3
            )


@pytest.mark.parametrize("correct", [0, 20])
def test_all_right_or_all_wrong_is_not_certain(correct):
    low, high = wilson(correct, 20)
    assert 0 <= low < high <= 100 and high - low > 10


@pytest.mark.parametrize(("p", "q"), [(0.02, 0.02), (0.05, 0.01), (0.3, 0.1)])
def test_the_interval_of_a_difference_holds_it_in_95_of_100_trials(p, q):
    rng = np.random.default_rng(0)
    inside = 0
    for lost, gained, _ in rng.multinomial(300, (p, q, 1 - p - q), size=2000):
        low, high = paired_difference(int(lost), int(gained), 300)
        inside += low <= 100 * (p - q) <= high
    assert 0.93 < inside / 2000 < 0.985


def test_what_both_have_right_makes_a_difference_surer_than_two_accuracies():
    low, high = paired_difference(6, 0, 300)
    first, second = wilson(290, 300), wilson(284, 300)
    assert high - low < 0.6 * ((first[1] - first[0]) + (second[1] - second[0]))
    assert low > 0, "six of six changes to the worse are no chance"


@pytest.mark.parametrize(("k", "n"), [(79, 100), (0, 10), (10, 10), (1, 3), (500, 1000)])
def test_the_interval_is_scipys(k: int, n: int) -> None:
    want = scipy.stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert clopper_pearson(k, n) == pytest.approx((want.low, want.high), abs=1e-9)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (5, 5), (2, 14), (30, 11)])
def test_the_paired_test_is_the_sign_test(a: int, b: int) -> None:
    want = scipy.stats.binomtest(a, a + b).pvalue if a + b else 1.0
    assert mcnemar(a, b) == pytest.approx(want)


@pytest.mark.parametrize(
    ("k", "n"), [(0, 1_000_000), (3, 1_000_000), (500_123, 1_000_000), (999_999, 1_000_000)]
)
def test_a_million_images_have_an_exact_interval_too(k, n):
    exact = scipy.stats.binomtest(k, n).proportion_ci(0.95, "exact")
    assert clopper_pearson(k, n) == pytest.approx((exact.low, exact.high), rel=1e-6, abs=1e-12)
