"""BatchNorm statistics over many batches, as sums that several processes can add up.

With s(b) the mean and variance of batch b, of B batches:

- cumulative average: s = 1/B · Σ_b s(b);
- moving average with momentum m, from s₀: s = (1 − m)^B · s₀ + Σ_b m · (1 − m)^(B−1−b) · s(b).

Both are sums over b, so that each process adds up its own batches, in float64, and these sums are added.

How far the cumulative average is from that of endless batches of such images is its standard error, a layer:
‖Δ‖ = √(Σ_b ‖s(b) − s‖² / (B − 1) / B), from Welford's sums of squares, which processes merge as Chan does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .batchnorm import Statistics


@dataclasses.dataclass(frozen=True)
class Share:
    """What one process has of the statistics of all layers, P means and variances in L layers.

    Attributes:
        sum: (P,) float64; of a moving average, as it is after batch ``until`` − 1.
        squares: (L,) float64: Σ_b ‖s(b) − mean‖² over this process' batches.
        count: How many these are.
        until: The last of them, counted over all processes, and 1.
    """

    sum: Tensor
    squares: Tensor
    count: int = 0
    until: int = 0


@dataclasses.dataclass(frozen=True)
class Convergence:
    """How far cumulative statistics are from those of endless batches, by their standard error.

    Attributes:
        batches: They are of.
        layers: Of each layer, relative to its means and variances.
        overall: Of all layers together.
    """

    batches: int
    layers: Mapping[str, float]
    overall: float

    @property
    def worst(self) -> str:
        """The layer of the largest."""
        return max(self.layers, key=self.layers.__getitem__)

    def more(self, target: float) -> int:
        """How many more batches would bring all layers together to a target: the error falls as 1/√B."""
        return max(0, math.ceil(self.batches * (self.overall / target) ** 2) - self.batches)


class RunningStatistics:
    """One process' statistics of all layers.

    Args:
        original: s₀.
        momentum: m, or None for the cumulative average.
    """

    def __init__(self, original: Mapping[str, Statistics], momentum: float | None) -> None:
        self._original, self._momentum = original, momentum
        widths = [2 * each.mean.numel() for each in original.values()]
        self._layer = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths))
        self.share = Share(
            torch.zeros(len(self._layer), dtype=torch.float64), torch.zeros(len(widths), dtype=torch.float64)
        )

    def add(self, index: int, batch: Mapping[str, Statistics]) -> None:
        """s(b) of one more batch, b counted over the batches of all processes; ascending."""
        before, values = self.share, _flat(batch)
        count = before.count + 1
        if self._momentum is not None:
            moved = self._aged(before, index) * (1 - self._momentum) + self._momentum * values
            self.share = Share(moved, before.squares, count, index + 1)
            return
        total = before.sum + values
        squares = before.squares
        if before.count:
            squares = squares + self._by_layer(
                (values - before.sum / before.count) * (values - total / count)
            )
        self.share = Share(total, squares, count, index + 1)

    def value(self, shares: Sequence[Share], batches: int) -> dict[str, Statistics]:
        """s, of what all processes have.

        Args:
            shares: By rank.
            batches: Of all processes together.
        """
        if self._momentum is None:
            total = torch.stack([share.sum for share in shares]).sum(0) / batches
        else:
            total = torch.stack([self._aged(share, batches) for share in shares]).sum(0)
            total += (1 - self._momentum) ** batches * _flat(self._original)
        found, start = {}, 0
        for name, old in self._original.items():
            width = old.mean.numel()
            mean, var = total[start : start + 2 * width].reshape(2, width).to(old.mean.device, old.mean.dtype)
            start += 2 * width
            before = old.count if self._momentum is not None else torch.zeros_like(old.count)
            found[name] = Statistics(mean, var, before + batches)
        return found

    def convergence(self, shares: Sequence[Share], batches: int) -> Convergence | None:
        """How far s is from its limit; None for a moving average, which has none, and for one batch."""
        if self._momentum is not None or batches < 2:
            return None
        mean = torch.stack([share.sum for share in shares]).sum(0) / batches
        squares = sum(
            share.squares + share.count * self._by_layer((share.sum / share.count - mean) ** 2)
            for share in shares
            if share.count
        )
        assert isinstance(squares, Tensor)
        variance, norms = squares / (batches - 1) / batches, self._by_layer(mean**2)
        layers = (variance / norms).sqrt().tolist()
        overall = float((variance.sum() / norms.sum()).sqrt())
        return Convergence(batches, dict(zip(self._original, layers, strict=True)), overall)

    def _aged(self, share: Share, batches: int) -> Tensor:
        assert self._momentum is not None
        return share.sum * (1 - self._momentum) ** (batches - share.until)

    def _by_layer(self, values: Tensor) -> Tensor:
        """Sums of (P,) over each layer, (L,)."""
        found = torch.zeros(int(self._layer[-1]) + 1, dtype=torch.float64)
        return found.index_add_(0, self._layer, values)


def _flat(statistics: Mapping[str, Statistics]) -> Tensor:
    """All means and variances, (P,) float64 on the CPU."""
    parts = [part for each in statistics.values() for part in (each.mean, each.var)]
    return torch.cat([part.detach().to("cpu", torch.float64).reshape(-1) for part in parts])
