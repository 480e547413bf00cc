"""Shared by all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, which their children would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# As the command line does: threads that spin while they wait slow everything on a busy machine. The networks
# of the tests are small, and several processes run them at once.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Each of those processes is given the width of a terminal that it does not have.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("COLUMNS", None)
    os.environ.pop("LINES", None)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What this run keeps, engines and trials: those of an earlier run would prove nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded digits, calibrated in a few seconds and exported. Not to be changed: tests copy it."""
    from tests.support.command_line import run_command

    folder = tmp_path_factory.mktemp("digits") / "model"
    run_command("calibrate", "--eta", "0.3", "--batches", "4", "--attack", "fgsm", "--out", str(folder))
    run_command("export", str(folder))
    return folder
