"""One calibration divided among processes, beside one process: wall time, and whether the statistics agree.

    python benchmarks/calibration_processes.py [--model resnet18] [--size 96] [--batches 8] [--processes 2]

Algorithm 1 with PGD-10 on random images, batches of 32, a thread a process; what is measured is from the
first batch to the settled statistics, without start-up. It needs as many idle cores as processes.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from measuring import machine, write_results
from torch import Tensor

from sad_deploy.batchnorm import batchnorm_layers, read_statistics
from sad_deploy.calibration import calibrate_each
from sad_deploy.kept_state import Keeper
from sad_deploy.processes import joined
from sad_deploy.sweep import CalibrationSettings

ETA = 0.1
BATCH_SIZE = 32


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    one, several = [], []
    statistics = []
    for _ in range(arguments.runs):
        for count, seconds in ((1, one), (arguments.processes, several)):
            taken, found = measured(arguments, count)
            seconds.append(taken)
            statistics.append(found)
    error = max(float((each - statistics[0]).norm() / statistics[0].norm()) for each in statistics)
    ratio = sorted(a / b for a, b in zip(one, several, strict=True))[arguments.runs // 2]
    print(f"{arguments.processes} processes: {ratio:.2f} × as fast, statistics within {error:.1g}")
    results: dict[str, Any] = {
        "machine": machine(),
        **{name: getattr(arguments, name) for name in ("model", "size", "batches", "processes")},
        "batch_size": BATCH_SIZE,
        "load_before": os.getloadavg()[0],
        "one_seconds": one,
        "several_seconds": several,
        "times_as_fast": ratio,
        "statistics_error": error,
    }
    write_results(Path(__file__).parent / "results" / "calibration_processes.json", results)


def measured(arguments: argparse.Namespace, count: int) -> tuple[float, Tensor]:
    """Seconds, and the statistics in one vector."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.pt"
        torch.multiprocessing.spawn(calibrated, (arguments, count, answer), nprocs=count)
        seconds, found = torch.load(answer)
    return seconds, found


def calibrated(rank: int, arguments: argparse.Namespace, count: int, answer: Path) -> None:
    """One process of several."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = getattr(torchvision.models, arguments.model)(weights=None, num_classes=10).eval()
    shape = (BATCH_SIZE, 3, arguments.size, arguments.size)
    batches = [torch.rand(shape) for _ in range(arguments.batches)]
    with joined() as processes:
        processes.gather(None)
        started = time.monotonic()
        sweep = calibrate_each(model, batches, (ETA,), CalibrationSettings(), keeper=Keeper(processes))
        seconds = time.monotonic() - started
        if processes.is_first:
            found = read_statistics(batchnorm_layers(sweep.model_at(ETA))).values()
            flat = torch.cat([part.double() for each in found for part in (each.mean, each.var)])
            torch.save((seconds, flat), answer)


if __name__ == "__main__":
    main()
