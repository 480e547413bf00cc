"""Adam (Kingma and Ba, ICLR 2015, Algorithm 1) in NumPy, for attacks that descend."""

from __future__ import annotations

from typing import Any

import numpy as np

from .search import Array

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Moments and steps of every coordinate by itself.

    Args:
        shape: Of what is optimised.
        rate: The learning rate α.
    """

    def __init__(self, shape: tuple[int, ...], rate: float) -> None:
        self._rate = rate
        self._mean, self._square, self._steps = np.zeros(shape), np.zeros(shape), np.zeros(shape)

    def change(self, gradient: Array, at: Any = ...) -> Array:
        """What to add for a gradient.

        Args:
            gradient: Of what is made smaller, shaped as ``at`` selects; NaN and infinity count as 0.
            at: Index of the coordinates that it is of, each at most once; all by default.
        """
        g = np.nan_to_num(gradient.astype(np.float64), nan=0, posinf=0, neginf=0)
        self._steps[at] += 1
        self._mean[at] = _BETA1 * self._mean[at] + (1 - _BETA1) * g
        self._square[at] = _BETA2 * self._square[at] + (1 - _BETA2) * g**2
        mean = self._mean[at] / (1 - _BETA1 ** self._steps[at])
        square = self._square[at] / (1 - _BETA2 ** self._steps[at])
        change: Array = -self._rate * mean / (np.sqrt(square) + _EPSILON)
        return change
