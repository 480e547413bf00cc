"""95 % intervals of what was counted on some images, and a test of what differs between two answers to them.

All stay sensible where nothing was wrong at all, which the usual p ± 1.96·√(p(1−p)/n) does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

_Z = 1.959964  # 95 % of a normal distribution
_TAIL = 0.025


def wilson(correct: int, images: int) -> tuple[float, float]:
    """Interval of an accuracy (Wilson, 1927).

    (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n), with p = correct/images.

    Returns:
        Low and high, in percent.
    """
    p, n = correct / images, images
    middle, half = p + _Z**2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + _Z**2 / n) for sign in (-1, 1))
    return 100 * max(0.0, low), 100 * min(1.0, high)


def paired_difference(lost: int, gained: int, images: int) -> tuple[float, float]:
    """Interval of the accuracy lost between two answers to the same images (Bonett, Price 2012).

    d ± z·√((a + b − d²)/(n + 2)) with a = (lost + 1)/(n + 2), b = (gained + 1)/(n + 2), d = a − b: images
    that both have right, or both wrong, say nothing about the difference.

    Args:
        lost: Images that the first has right and the second wrong.
        gained: The other way round.
        images: All.

    Returns:
        Low and high of first minus second, in points.
    """
    n = images + 2
    a, b = (lost + 1) / n, (gained + 1) / n
    half = _Z * math.sqrt((a + b - (a - b) ** 2) / n)
    return 100 * max(-1.0, a - b - half), 100 * min(1.0, a - b + half)


def clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson, 1934): what is published of robustness.

    Args:
        successes: k.
        trials: n, at least 1.

    Returns:
        Low and high, as shares.
    """
    tail = _TAIL
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
    """P(X ≤ k) for X binomial; of the tail that k lies in, so that a million trials take no time."""
    if p <= 0 or k >= n:
        return 1.0
    if p >= 1:
        return 0.0
    return 1 - _tail(n - k - 1, n, 1 - p) if k + 0.5 > n * p else _tail(k, n, p)


def _tail(k: int, n: int, p: float) -> float:
    """P(X ≤ k) for k below the mean: the terms fall from k on, down to what adds nothing."""
    log_choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    term, total = math.exp(log_choose + k * math.log(p) + (n - k) * math.log1p(-p)), 0.0
    for i in range(k, -1, -1):
        total += term
        if term < 1e-17 * total:
            break
        term *= i * (1 - p) / ((n - i + 1) * p)
    return total


def _root(rising: Callable[[float], float]) -> float:
    """Where a rising function of a share is 0."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2
