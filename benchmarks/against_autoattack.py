"""AutoAttack beside `evaluate`, on the same defended network and images: strength and CPU time.

    python benchmarks/against_autoattack.py [--images 100] [--weights FILE]

AutoAttack standard (pyautoattack) attacks the digits' adversarially trained network with SAD in PyTorch,
through both passes with S held constant; `sad-deploy evaluate` attacks the exported file, all its ways and
checks, and the undefended network beside it. L∞, ε 0.1, one thread each, one after the other.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measuring import machine, write_results
from pyautoattack import AutoAttack
from robustness import run
from torch import Tensor, nn

from sad_deploy import SADClassifier
from sad_deploy.calibrated import load_calibrated
from sad_deploy.classifier import standardized
from sad_deploy.evaluation.data import labelled
from sad_runtime.manifest import InputSpace

ETA, EPSILON = 1.2, 0.1


class OnPixels(nn.Module):
    """The defended network as a function of pixels in [0, 1]."""

    def __init__(self, defended: nn.Module, space: InputSpace) -> None:
        super().__init__()
        self.defended, self.space = defended, space

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, K)."""
        logits: Tensor = self.defended(standardized(x, self.space))
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument(
        "--weights", type=Path, help="an adversarially trained digits network in place of the embedded one"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = ("--model", "digits-adversarial")
    if arguments.weights is not None:
        network = ("--weights", str(arguments.weights.resolve()))
    results: dict[str, Any] = {
        "machine": machine(),
        "images": arguments.images,
        "eta": ETA,
        "epsilon": EPSILON,
    }
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "model"
        run("calibrate", *network, "--eta", ETA, "--out", bundle)
        run("export", bundle)
        words = ("--epsilon", EPSILON, "--images", arguments.images, "--processes", 1, "--json")
        found = json.loads(run("evaluate", bundle, *words))
        (result,) = found["results"]
        results["evaluate"] = {
            "cpu_seconds": found["cpu_seconds"],
            "cpu_seconds_of_the_defended_file": sum(row["cpu_seconds"] for row in result["attacks"]),
            "worst_case": result["worst_case"],
            "undefended": result["undefended"]["worst_case"],
        }
        print(results["evaluate"])
        results["autoattack"] = autoattack(bundle, arguments.images)
        print(results["autoattack"])
    results["times_the_cpu"] = results["autoattack"]["cpu_seconds"] / found["cpu_seconds"]
    results["points_stronger"] = results["autoattack"]["percent"] - result["worst_case"]["percent"]
    print(f"{results['times_the_cpu']:.2f} × cheaper, {results['points_stronger']:.1f} points stronger")
    write_results(Path(__file__).parent / "results" / "against_autoattack.json", results)


def autoattack(bundle: Path, count: int) -> dict[str, float]:
    """What AutoAttack standard leaves of the network in PyTorch, and its CPU time."""
    phi1, manifest = load_calibrated(bundle)
    defended = SADClassifier(phi1, eta=ETA, differentiable="constant")
    model = OnPixels(defended, manifest.input_space)
    images = labelled("digits", manifest.preprocessing, manifest.classes, count=count, seed=0).images
    x, y = torch.from_numpy(images.pixels), torch.from_numpy(images.labels)
    attack = AutoAttack(model, eps=EPSILON, seed=0, version="standard")
    started = time.process_time()
    attacked, _ = attack.run_standard_evaluation(x, y, batch_size=count)
    seconds = time.process_time() - started
    left = (model(attacked).argmax(1) == y).float().mean()
    return {"percent": 100 * float(left), "cpu_seconds": seconds}


if __name__ == "__main__":
    main()
