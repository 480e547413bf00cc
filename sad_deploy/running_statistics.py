"""BatchNorm statistics over many batches, as sums that several processes can add up.

With s(b) the mean and variance of batch b, of B batches:

- cumulative average: s = 1/B · Σ_b s(b);
- moving average with momentum m, from s₀: s = (1 − m)^B · s₀ + Σ_b m · (1 − m)^(B−1−b) · s(b).

Both are sums over b, so that each process adds up its own batches, in float64, and these sums are added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .batchnorm import Statistics


class RunningStatistics:
    """One process' share of the statistics of all layers.

    Args:
        original: s₀.
        momentum: m, or None for the cumulative average.
    """

    def __init__(self, original: Mapping[str, Statistics], momentum: float | None) -> None:
        self._original, self._momentum = original, momentum
        self.sum = torch.zeros_like(_flat(original))
        """(P,) float64; a moving average as it is after batch :attr:`until` − 1."""

        self.until = 0

    def add(self, index: int, batch: Mapping[str, Statistics]) -> None:
        """s(b) of one more batch, b counted over the batches of all processes; ascending."""
        if self._momentum is None:
            self.sum += _flat(batch)
        else:
            self.sum = self._aged(index) * (1 - self._momentum) + self._momentum * _flat(batch)
        self.until = index + 1

    def share(self, batches: int) -> Tensor:
        """This process' part of s, (P,) float64, after ``batches`` of all processes."""
        return self.sum / batches if self._momentum is None else self._aged(batches)

    def value(self, shares: Sequence[Tensor], batches: int) -> dict[str, Statistics]:
        """s, of what all processes have.

        Args:
            shares: (P,) float64 each, by rank.
            batches: Of all processes together.
        """
        total = torch.stack(list(shares)).sum(0)
        if self._momentum is not None:
            total += (1 - self._momentum) ** batches * _flat(self._original)
        found, start = {}, 0
        for name, old in self._original.items():
            width = old.mean.numel()
            mean, var = total[start : start + 2 * width].reshape(2, width).to(old.mean.device, old.mean.dtype)
            start += 2 * width
            before = old.count if self._momentum is not None else torch.zeros_like(old.count)
            found[name] = Statistics(mean, var, before + batches)
        return found

    def _aged(self, batches: int) -> Tensor:
        assert self._momentum is not None
        return self.sum * (1 - self._momentum) ** (batches - self.until)


def _flat(statistics: Mapping[str, Statistics]) -> Tensor:
    """All means and variances, (P,) float64 on the CPU."""
    parts = [part for each in statistics.values() for part in (each.mean, each.var)]
    return torch.cat([part.detach().to("cpu", torch.float64).reshape(-1) for part in parts])
