"""What the defence costs on the CPU: two passes against one, in onnxruntime; sizes of graph and engine.

    python benchmarks/cpu_cost.py [--models resnet18 resnet50] [--batch 4]

Process CPU time on one thread, forward and two-pass graphs interleaved in one process; the ratio is of the
medians. Weights are random: the cost does not depend on them.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torchvision
from measuring import machine, write_results

from sad_deploy.fold import fold_batchnorm
from sad_deploy.to_onnx import to_onnx
from sad_export import two_pass
from sad_export.tensorrt import build_engine

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Name → dgrad and target of the two-pass graph.
FORMS = {"portable": ("auto", "portable"), "cpu": ("auto", "cpu"), "conv": ("conv", "portable")}
TARGETS = {"cost_ratio": 4.0, "onnx_size_ratio": 1.02, "engine_size_ratio": 1.10}


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def interleaved(jobs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median process CPU seconds of each job, the jobs taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(rounds):
        for name, job in jobs.items():
            started = time.process_time()
            job()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(
    name: str, batch: int, rounds: int, forms: list[str], engines: bool, folder: Path
) -> dict[str, Any]:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    forward = to_onnx(fold_batchnorm(model), (3, 224, 224))
    forward_path = folder / f"{name}.onnx"
    onnx.save(forward, str(forward_path))
    paths = {"forward": forward_path}
    build_seconds = {}
    for form in forms:
        dgrad, target = FORMS[form]
        started = time.process_time()
        graph = two_pass(forward, eta=0.05, mean=MEAN, std=STD, dgrad=dgrad, target=target)
        build_seconds[form] = time.process_time() - started
        paths[form] = folder / f"{name}.{form}.onnx"
        onnx.save(graph, str(paths[form]))
    images = np.random.default_rng(0).random((batch, 3, 224, 224), dtype=np.float32)
    jobs: dict[str, Callable[[], Any]] = {}
    for key, path in paths.items():
        loaded = session(path)
        outputs = ["logits"] if key != "forward" else None
        jobs[key] = functools.partial(loaded.run, outputs, {loaded.get_inputs()[0].name: images})
    seconds = interleaved(jobs, rounds)
    result: dict[str, Any] = {"model": name, "batch": batch, "forward_cpu_seconds": seconds["forward"]}
    result["forms"] = {
        form: {
            "cpu_seconds": seconds[form],
            "cost_ratio": seconds[form] / seconds["forward"],
            "onnx_size_ratio": paths[form].stat().st_size / forward_path.stat().st_size,
            "two_pass_cpu_seconds": build_seconds[form],
        }
        for form in forms
    }
    if engines:
        sizes = {
            key: build_engine(path, folder / f"{name}.{key}.plan", flavor="rtx")
            for key, path in paths.items()
        }
        for form in forms:
            figures = result["forms"][form]
            figures["engine_size_ratio"] = sizes[form].bytes / sizes["forward"].bytes
            figures["engine_build_seconds"] = sizes[form].seconds
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--no-engines", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu_cost.json")
    arguments = parser.parse_args()
    rows = []
    print(f"{'model':<14}{'form':<16}{'forward s':>10}{'two-pass s':>11}{'ratio':>7}{'onnx':>8}{'engine':>8}")
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(
                name,
                arguments.batch,
                arguments.rounds,
                arguments.forms,
                not arguments.no_engines,
                Path(folder),
            )
        rows.append(row)
        for form, figures in row["forms"].items():
            engine = f"{figures['engine_size_ratio']:.3f}" if "engine_size_ratio" in figures else "–"
            print(
                f"{name:<14}{form:<16}{row['forward_cpu_seconds']:>10.3f}{figures['cpu_seconds']:>11.3f}"
                f"{figures['cost_ratio']:>7.2f}{figures['onnx_size_ratio']:>8.4f}{engine:>8}"
            )
    write_results(arguments.out, {"machine": machine(), "targets": TARGETS, "rows": rows})


if __name__ == "__main__":
    main()
