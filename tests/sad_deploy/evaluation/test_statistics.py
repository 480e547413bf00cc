from __future__ import annotations

import pytest
import scipy.stats

from sad_deploy.evaluation.statistics import clopper_pearson, mcnemar


@pytest.mark.parametrize(("k", "n"), [(79, 100), (0, 10), (10, 10), (1, 3), (500, 1000)])
def test_the_interval_is_scipys(k: int, n: int) -> None:
    want = scipy.stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert clopper_pearson(k, n) == pytest.approx((want.low, want.high), abs=1e-9)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (5, 5), (2, 14), (30, 11)])
def test_the_paired_test_is_the_sign_test(a: int, b: int) -> None:
    want = scipy.stats.binomtest(a, a + b).pvalue if a + b else 1.0
    assert mcnemar(a, b) == pytest.approx(want)
