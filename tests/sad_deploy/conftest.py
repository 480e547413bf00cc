"""What several tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_global_seed() -> Iterator[None]:
    """A test's random numbers are its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
