"""Processes that ``torchrun`` starts calibrate what one alone does; if one dies, all end, with no bundle."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

CALIBRATE = ["-m", "sad_deploy", "calibrate", "--device", "cpu"]
SWEEP = [
    "--eta-grid",
    "0.1,0.5",
    "--attack",
    "fgsm",
    "--batch-size",
    "64",
    "--batches",
    "5",
    "--max-drop",
    "50",
]
PAPER = ["--paper", "--batch-size", "32", "--batches", "4"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def torchrun(count: int, *arguments: str) -> list[str]:
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return [*head, *CALIBRATE, *arguments]


@pytest.mark.parametrize(("count", "arguments"), [(2, SWEEP), (3, PAPER)], ids=["sweep", "moving average"])
def test_statistics_are_those_of_one_process(tmp_path: Path, count: int, arguments: list[str]) -> None:
    one = subprocess.run(
        [sys.executable, *CALIBRATE, *arguments, "--out", "one"],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    several = subprocess.run(
        torchrun(count, *arguments, "--out", "several"),
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert several.stdout.replace("several", "one") == one.stdout  # said once
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "several"]
    expected, found = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "several"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)


def test_what_is_wrong_is_said_once(tmp_path: Path) -> None:
    both = subprocess.run(
        torchrun(2, "--weights", "nothing.pt", "--out", "bundle"),
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert both.returncode != 0 and both.stderr.count("nothing.pt") == 1, both.stderr
    assert not list(tmp_path.iterdir())


def test_a_process_that_dies_ends_the_others_and_nothing_is_written(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = ENVIRONMENT | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    long = ["--eta", "0.3", "--batch-size", "16", "--batches", "2000", "--out", "bundle"]
    started = [
        subprocess.Popen(
            [sys.executable, *CALIBRATE, *long],
            cwd=tmp_path, env=shared | {"RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    state = tmp_path / "bundle.calibrating"
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert state.exists(), "no batch was done"
    started[1].send_signal(signal.SIGKILL)
    said = started[0].communicate(timeout=30)[1]
    started[1].communicate(timeout=30)
    assert started[0].returncode == 2, said
    assert "another process of this calibration has ended" in said and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.calibrating"]
