"""Writing the input gradient: CPU seconds and memory of the two-pass graph, from file to file.

    python benchmarks/graph_build.py [--models resnet50 efficientnet_b7]

A forward graph is exported at 224², folded, with a dynamic batch. A fresh process then does what the
command line does: read the file, build the two-pass graph, write it. Seconds are process CPU time after the
imports; memory is the process's peak beyond its peak after the imports, as a multiple of the forward file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import machine, write_results

MODELS = ["resnet50", "efficientnet_b7", "densenet161", "vgg16_bn"]
SECONDS = {"resnet50": 3.0, "efficientnet_b7": 15.0}
MEMORY = 4.0
"""Peak memory, times the forward file."""

EXPORT = """
import sys, onnx, torch, torchvision
from sad_deploy.fold import fold_batchnorm
from sad_deploy.to_onnx import to_onnx
torch.manual_seed(0)
model = torchvision.models.get_model(sys.argv[1], weights=None).eval()
onnx.save(to_onnx(fold_batchnorm(model), (3, 224, 224)), sys.argv[2])
"""

BUILD = """
import json, resource, sys, time
import onnx
from sad_export import two_pass
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
baseline, started = peak(), time.process_time()
onnx.save(two_pass(sys.argv[1], eta=0.05, target=sys.argv[3]), sys.argv[2])
print(json.dumps({"cpu_seconds": time.process_time() - started, "baseline": baseline, "peak": peak()}))
"""


def measure(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """One model, for both targets; the fastest of the rounds, and the largest memory."""
    forward, written = folder / "forward.onnx", folder / "two_pass.onnx"
    _python(EXPORT, name, str(forward))
    size = forward.stat().st_size
    result: dict[str, Any] = {"model": name, "forward_bytes": size}
    for target in ("portable", "cpu"):
        runs = [json.loads(_python(BUILD, str(forward), str(written), target)) for _ in range(rounds)]
        memory = max(run["peak"] - run["baseline"] for run in runs)
        seconds = min(run["cpu_seconds"] for run in runs)
        result[target] = {
            "cpu_seconds": seconds,
            "peak_bytes": memory,
            "peak_over_file": memory / size,
            "written_over_forward": written.stat().st_size / size,
            "met": memory / size <= MEMORY and seconds <= SECONDS.get(name, float("inf")),
        }
    forward.unlink()
    written.unlink()
    return result


def _python(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "graph_build.json")
    arguments = parser.parse_args()
    rows = []
    print(f"{'model':<18}{'file':>9}{'target':>10}{'CPU s':>8}{'peak':>9}{'× file':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            row = measure(name, Path(folder), arguments.rounds)
            rows.append(row)
            for target in ("portable", "cpu"):
                figures = row[target]
                print(
                    f"{name:<18}{row['forward_bytes'] / 1e6:>6.0f} MB{target:>10}"
                    f"{figures['cpu_seconds']:>8.2f}"
                    f"{figures['peak_bytes'] / 1e6:>6.0f} MB{figures['peak_over_file']:>8.2f}",
                    flush=True,
                )
    targets = {"cpu_seconds": SECONDS, "peak_over_file": MEMORY}
    write_results(arguments.out, {"machine": machine(), "targets": targets, "rows": rows})


if __name__ == "__main__":
    main()
