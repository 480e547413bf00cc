"""How OpenVINO is best given a batch: fixed or any size, in pieces on streams or whole; and its cache.

    python benchmarks/openvino_pieces.py [--models mobilenet_v2 resnet18 resnet50]

Two-pass graphs, portable, random weights, 224², float32. *Sizes*: process CPU time an image on one thread,
for graphs compiled for one batch size and for any. *Streams*: wall time an image of a batch of 32 on all
cores, cut into pieces that streams of one thread take in turns. *Cache*: seconds to compile, with and without
OpenVINO's cache of compiled graphs, and its size. All interleaved, the best of the rounds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import torch
import torchvision
from measuring import machine, write_results

from sad_deploy.fold import fold_batchnorm
from sad_deploy.to_onnx import to_onnx
from sad_export import two_pass
from sad_runtime.devices import available_cores

BATCH = 32
SIZES = (1, 2, 4, 8, 16)
CORE = openvino.Core()


def compiled(path: Path, size: int | None, streams: int, threads: int, **more: str) -> Any:
    """The graph, for one batch size or for any."""
    model = CORE.read_model(path)
    if size is not None:
        model.reshape([size, 3, 224, 224])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": streams}
    return CORE.compile_model(model, "CPU", settings | more)


def job(graph: Any, images: Any, size: int) -> Callable[[], None]:
    """A whole batch, in pieces that the streams take in turns."""
    requests = [graph.create_infer_request() for _ in range(graph.get_property("NUM_STREAMS"))]

    def run() -> None:
        for number, start in enumerate(range(0, len(images), size)):
            request = requests[number % len(requests)]
            if number >= len(requests):
                request.wait()
            request.start_async({0: images[start : start + size]})
        for request in requests:
            request.wait()

    return run


def best(
    jobs: dict[str, Callable[[], None]], count: int, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Milliseconds an image of each job, the jobs taking turns."""
    taken = dict.fromkeys(jobs, float("inf"))
    for run in jobs.values():
        run()
    for _ in range(rounds):
        for name, run in jobs.items():
            started = clock()
            run()
            taken[name] = min(taken[name], clock() - started)
    return {name: round(1000 * seconds / count, 2) for name, seconds in taken.items()}


def measure(name: str, rounds: int) -> dict[str, Any]:
    """The three tables of one network."""
    torch.manual_seed(0)
    model = fold_batchnorm(torchvision.models.get_model(name, weights=None).eval())
    images = np.random.default_rng(0).random((BATCH, 3, 224, 224), dtype=np.float32)
    cores = available_cores()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        onnx.save(two_pass(to_onnx(model, (3, 224, 224)), eta=0.05), str(path))
        sizes = {f"{size}": job(compiled(path, size, 1, 1), images[:16], size) for size in SIZES}
        sizes["4, any size"] = job(compiled(path, None, 1, 1), images[:16], 4)
        streams = {
            f"pieces of {size}, {cores} streams": job(compiled(path, size, cores, cores), images, size)
            for size in SIZES
        }
        streams[f"{BATCH} at once, {cores} threads"] = job(compiled(path, BATCH, 1, cores), images, BATCH)
        return {
            "model": name,
            "cpu_ms_an_image": best(sizes, 16, rounds, time.process_time),
            "wall_ms_an_image": best(streams, BATCH, rounds, time.perf_counter),
            "cache": _cache(path, Path(folder) / "cache", cores, rounds),
        }


def _cache(path: Path, folder: Path, cores: int, rounds: int) -> dict[str, float]:
    def seconds(**more: str) -> float:
        started = time.perf_counter()
        compiled(path, 4, cores, cores, **more)
        return time.perf_counter() - started

    seconds(CACHE_DIR=str(folder))  # fills it
    plain, cached = zip(*((seconds(), seconds(CACHE_DIR=str(folder))) for _ in range(rounds)), strict=True)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {
        "compile_seconds": round(min(plain), 2),
        "from_cache_seconds": round(min(cached), 2),
        "cache_mb": round(size / 1e6, 1),
        "onnx_mb": round(path.stat().st_size / 1e6, 1),
    }


def main() -> None:
    """Print and write all three."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2", "resnet18", "resnet50"])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.models:
        rows.append(measure(name, arguments.rounds))
        for table, figures in rows[-1].items():
            print(table, figures, flush=True)
    write_results(
        Path(__file__).parent / "results" / "openvino_pieces.json", {"machine": machine(), "rows": rows}
    )


if __name__ == "__main__":
    main()
