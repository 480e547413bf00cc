"""What SAD gains and loses in the worst case, on the digits: naturally and adversarially trained.

    python benchmarks/robustness.py [--images 100] [--processes 2]

For each network: calibrate, export (float32 and int8 for CPUs), then `sad-deploy evaluate --matrix`, which
attacks the files themselves. The results are what `evaluation.json` says, but for the list of images.
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

NETWORKS = {
    "natural": ((), "0.3", "0.05"),
    "adversarial": (("--model", "digits-adversarial"), "1.2", "0.1"),
}
"""By name: what calibrate is told, η, and the ε at which it is attacked."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--weights", type=Path, help="an adversarially trained digits network in place of the embedded one"
    )
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        for name, (network, eta, epsilon) in NETWORKS.items():
            if name == "adversarial" and arguments.weights is not None:
                network = ("--weights", str(arguments.weights.resolve()))
            bundle = Path(folder) / name
            run("calibrate", *network, "--eta", eta, "--out", bundle)
            run("export", bundle)
            run("export", bundle, "--precision", "int8", "--target", "cpu")
            words = ("--epsilon", epsilon, "--images", arguments.images, "--processes", arguments.processes)
            text = run("evaluate", bundle, "--matrix", "--json", *words)
            results[name] = without_images(json.loads(text))
            print(name, summary(results[name]))
    write_results(Path(__file__).parent / "results" / "robustness.json", results)


def run(*words: object) -> str:
    """A command's stdout."""
    command = [sys.executable, "-m", "sad_deploy", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def without_images(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The record without a line for every image."""
    for result in evaluation["results"]:
        del result["images"]
    return evaluation


def summary(evaluation: dict[str, Any]) -> str:
    """One line."""
    (result,) = evaluation["results"]
    worst, other = result["worst_case"], result["undefended"]["worst_case"]
    epsilon = result["threat_model"]["epsilon"]
    return (
        f"ε {epsilon}: worst case {worst['percent']:.1f} % of {worst['images']}, undefended "
        f"{other['percent']:.1f} %, {evaluation['cpu_seconds']:.0f} s of CPU"
    )


if __name__ == "__main__":
    main()
