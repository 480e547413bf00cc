"""95 % intervals of what was counted on some images: an accuracy, and a difference of two on the same images.

Both stay sensible where nothing was wrong at all, which the usual p ± 1.96·√(p(1−p)/n) does not.
"""

from __future__ import annotations

import math

_Z = 1.959964  # 95 % of a normal distribution


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
