"""Intervals and paired tests of counts, exact, without SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable

CONFIDENCE = 0.95


def clopper_pearson(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson, 1934), as shares.

    Args:
        successes: k.
        trials: n, at least 1.
        confidence: 1 − α.
    """
    tail = (1 - confidence) / 2
    low, high = 0.0, 1.0
    if successes > 0:  # P(X ≥ k | low) = α/2
        low = _root(lambda p: 1 - _at_most(successes - 1, trials, p) - tail)
    if successes < trials:  # P(X ≤ k | high) = α/2
        high = _root(lambda p: tail - _at_most(successes, trials, p))
    return low, high


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p of paired outcomes (McNemar): pairs that differ fall to either side like a coin."""
    n = only_first + only_second
    if n == 0:
        return 1.0
    return min(1.0, 2 * _at_most(min(only_first, only_second), n, 0.5))


def _at_most(k: int, n: int, p: float) -> float:
    """P(X ≤ k) for X binomial."""
    if p <= 0:
        return 1.0
    if p >= 1:
        return 1.0 if k >= n else 0.0
    log = [
        math.lgamma(n + 1)
        - math.lgamma(i + 1)
        - math.lgamma(n - i + 1)
        + i * math.log(p)
        + (n - i) * math.log1p(-p)
        for i in range(k + 1)
    ]
    return math.fsum(map(math.exp, log))


def _root(rising: Callable[[float], float]) -> float:
    """Where a rising function of a share is 0."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2
