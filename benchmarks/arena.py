"""Where a two-pass graph's buffers come from on the CPU: time and memory of the settings of a session.

    python benchmarks/arena.py [--models resnet18 resnet50 mobilenet_v2] [--batches 8 32]

Each setting in a process of its own, all cores: CPU seconds of a batch, median of several, and the peak of
memory beyond that after loading, at the end of batches of three sizes. `sad-deploy infer` takes the arena and
no plan; onnxruntime's default is both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch
import torchvision
from measuring import machine, write_results

from sad_deploy.fold import fold_batchnorm
from sad_deploy.to_onnx import to_onnx
from sad_export import two_pass

SETTINGS = {
    "arena": (True, False),
    "arena and plan": (True, True),
    "plan": (False, True),
    "neither": (False, False),
}
"""Name → enable_cpu_mem_arena, enable_mem_pattern."""

_MEASURE = """
import json, re, statistics, sys, time
import numpy, onnxruntime
path, (arena, plan, batch, rounds) = sys.argv[1], map(int, sys.argv[2:])
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
options.enable_cpu_mem_arena, options.enable_mem_pattern = bool(arena), bool(plan)
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
loaded, seconds = peak(), []
images = numpy.random.default_rng(0).random((batch, 3, 224, 224), dtype=numpy.float32)
for size in (batch, batch, 3, 1, *[batch] * rounds):
    started = time.process_time()
    session.run(["logits"], {session.get_inputs()[0].name: images[:size]})
    seconds.append(time.process_time() - started)
print(json.dumps({"cpu_seconds": statistics.median(seconds[-rounds:]), "megabytes": peak() - loaded}))
"""


def measure(path: Path, setting: tuple[bool, bool], batch: int, rounds: int) -> dict[str, float]:
    command = [sys.executable, "-c", _MEASURE, str(path), *(str(int(on)) for on in setting)]
    result = subprocess.run(
        [*command, str(batch), str(rounds)], check=True, capture_output=True, text=True
    ).stdout
    figures: dict[str, float] = json.loads(result)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50", "mobilenet_v2"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "arena.json")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{'model':<14}{'batch':>5}  {'setting':<16}{'CPU s':>8}{'ratio':>7}{'MB':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            torch.manual_seed(0)
            model = torchvision.models.get_model(name, weights=None).eval()
            path = Path(folder) / f"{name}.onnx"
            graph = two_pass(to_onnx(fold_batchnorm(model), (3, 224, 224)), eta=0.05, target="cpu")
            onnx.save(graph, str(path))
            for batch in arguments.batches:
                settings = {
                    key: measure(path, setting, batch, arguments.rounds) for key, setting in SETTINGS.items()
                }
                rows.append({"model": name, "batch": batch, "settings": settings})
                for key, figures in settings.items():
                    ratio = figures["cpu_seconds"] / settings["arena"]["cpu_seconds"]
                    print(
                        f"{name:<14}{batch:>5}  {key:<16}{figures['cpu_seconds']:>8.3f}{ratio:>7.2f}"
                        f"{figures['megabytes']:>7.0f}",
                        flush=True,
                    )
    write_results(arguments.out, {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
