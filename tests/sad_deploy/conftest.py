"""What several tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sad_deploy.digits_default import Training, digits_state_dict


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the whole run, so that the default network is trained once in it."""
    return tmp_path_factory.mktemp("cache") / "sad-deploy"


@pytest.fixture(scope="session")
def default_weights(cache_folder: Path) -> dict[str, Tensor]:
    """The embedded default's weights."""
    return digits_state_dict(Training(), cache=cache_folder)[0]


@pytest.fixture
def cached_default(cache_folder: Path, default_weights: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default network comes from the run's cache, not from the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_folder.parent))


@pytest.fixture(autouse=True)
def _same_global_seed() -> Iterator[None]:
    """A test's random numbers are its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
