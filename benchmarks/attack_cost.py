"""What an attack costs beside its passes: APGD's own arithmetic in NumPy must be little.

    python benchmarks/attack_cost.py [--model resnet18] [--images 16] [--steps 20]

CPU time of APGD on the cross-entropy through both passes of a two-pass graph (random weights, one thread)
over the part of it that its passes take: runs of the attack graph, and answers of the graph itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torchvision
from measuring import machine, write_results

from sad_deploy.evaluation.attacks import Apgd, Problem
from sad_deploy.evaluation.oracles import Counts, GradientSource, VictimFile
from sad_deploy.evaluation.threat import Threat
from sad_deploy.fold import fold_batchnorm
from sad_deploy.to_onnx import to_onnx
from sad_export import attack_graph, two_pass


class Passes:
    """A source of gradients and a victim that count their CPU time."""

    num_classes = 1000
    of_cotangent = None

    def __init__(self, of_label: Callable[..., Any], victim: Callable[[Any], Any]) -> None:
        self.seconds = 0.0
        self._of_label, self._victim = of_label, victim

    def of_label(self, images: Any, labels: Any) -> Any:
        return self._timed(self._of_label, images, labels)

    def victim(self, images: Any) -> Any:
        return self._timed(self._victim, images)

    def _timed(self, run: Callable[..., Any], *inputs: Any) -> Any:
        started = time.process_time()
        found = run(*inputs)
        self.seconds += time.process_time() - started
        return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = torchvision.models.get_model(arguments.model).eval()
    images = np.random.default_rng(0).random((arguments.images, 3, 224, 224), dtype=np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(
            two_pass(to_onnx(fold_batchnorm(model), (3, 224, 224)), eta=0.1, target="cpu"), folder / "f.onnx"
        )
        onnx.save(attack_graph(folder / "f.onnx", way="constant", target="cpu"), folder / "g.onnx")
        counts = Counts()
        victim = VictimFile(folder / "f.onnx").open(counts)
        source = GradientSource(folder / "g.onnx", folder / "g.onnx", counts)
        # Labels that the network does not give would end the attack at once: those it is surest of do not.
        labels = victim(images).argmax(1)
        problem = Problem(
            images, labels, Threat(1e-6), victim, [np.random.default_rng(i) for i in range(len(images))]
        )
        source.of_label(images, labels)
        counts.forward = counts.backward = 0
        passes = Passes(source.of_label, victim)
        problem = dataclasses.replace(problem, victim=passes.victim)
        started = time.process_time()
        broken = Apgd(passes, steps=arguments.steps).run(problem).broken  # type: ignore[arg-type]
        attack = time.process_time() - started
    forward, backward = counts.forward // len(images), counts.backward // len(images)
    ratio = attack / passes.seconds
    parts = f"its {backward} gradients and {forward} answers {passes.seconds:.1f} s"
    print(f"{arguments.model}: {attack:.1f} s, {parts}: {ratio:.3f} ×")
    write_results(
        Path(__file__).parent / "results" / "attack_cost.json",
        {
            "machine": machine(),
            "model": arguments.model,
            "images": arguments.images,
            "steps": arguments.steps,
            "broken": int(broken.sum()),
            "gradients": backward,
            "answers": forward,
            "attack_cpu_seconds": attack,
            "passes_cpu_seconds": passes.seconds,
            "ratio": ratio,
        },
    )


if __name__ == "__main__":
    main()
