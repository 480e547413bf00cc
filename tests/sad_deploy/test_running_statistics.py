"""Sums over batches, divided among processes, are what PyTorch's BatchNorm keeps when it sees all of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sad_deploy.batchnorm import read_statistics
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
    found = ours[0].value([each.share(len(batches)) for each in ours], len(batches))["bn"]
    torch.testing.assert_close(found.mean, theirs.running_mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.var, theirs.running_var, rtol=1e-6, atol=1e-6)
    assert int(found.count) == int(theirs.num_batches_tracked)
