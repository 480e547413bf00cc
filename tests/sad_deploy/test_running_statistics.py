"""Sums over batches, divided among processes, are what PyTorch's BatchNorm keeps when it sees all of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sad_deploy.batchnorm import Statistics, read_statistics
from sad_deploy.running_statistics import RunningStatistics


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("momentum", [None, 0.1, 1.0])
def test_shares_add_up_to_pytorchs_own(momentum: float | None, processes: int) -> None:
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(7, momentum=momentum)
    if momentum is not None:  # a moving average begins with what was there
        theirs.running_mean = torch.randn(7)
        theirs.running_var = torch.rand(7) + 0.5
    before = read_statistics({"bn": theirs})
    ours = [RunningStatistics(before, momentum) for _ in range(processes)]
    batches = [3 * torch.randn(16, 7, 4, 4) + index for index in range(7)]  # divided unevenly
    for index, batch in enumerate(batches):
        alone = nn.BatchNorm2d(7, momentum=1.0)
        alone(batch)
        theirs(batch)
        ours[index % processes].add(index, read_statistics({"bn": alone}))
    found = ours[0].value([each.share for each in ours], len(batches))["bn"]
    torch.testing.assert_close(found.mean, theirs.running_mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.var, theirs.running_var, rtol=1e-6, atol=1e-6)
    assert int(found.count) == int(theirs.num_batches_tracked)


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_the_error_is_the_standard_error_of_the_mean(processes: int) -> None:
    rng = torch.Generator().manual_seed(0)
    zero = Statistics(torch.zeros(4), torch.zeros(4), torch.tensor(0))
    ours = [RunningStatistics({"a": zero, "b": zero}, None) for _ in range(processes)]
    values = 1 + torch.randn(400, 2, 8, generator=rng, dtype=torch.float64) * torch.tensor([[[0.1], [0.4]]])
    for index, (a, b) in enumerate(values):
        batch = {name: Statistics(each[:4], each[4:], torch.tensor(1)) for name, each in (("a", a), ("b", b))}
        ours[index % processes].add(index, batch)
    found = ours[0].convergence([each.share for each in ours], len(values))
    assert found is not None
    expected = values.std(0).square().sum(1).sqrt() / len(values) ** 0.5 / values.mean(0).norm(dim=1)
    assert list(found.layers.values()) == pytest.approx(expected.tolist(), rel=1e-9)
    assert found.worst == "b" and found.layers["b"] == pytest.approx(0.4 / 20, rel=0.1)
    assert found.more(found.overall / 2) == 3 * 400
    assert found.more(1.0) == 0
