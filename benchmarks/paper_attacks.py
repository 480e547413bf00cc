"""C&W, One Pixel, ZOO and Square (L2) of this package against ART's, foolbox's and pyautoattack's.

    pip install adversarial-robustness-toolbox foolbox pyautoattack
    python benchmarks/paper_attacks.py [--images 20]

All attack the embedded digits network without a defence: the libraries in PyTorch, ours the exported file. Of
each: share of images that resist, median distance of the others, answers or gradients asked, CPU time on one
thread. One Pixel gets images half way between two digits, since one pixel fools hardly any digit.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import onnx
import torch
from art.attacks.evasion import PixelAttack, ZooAttack
from art.estimators.classification import PyTorchClassifier
from measuring import machine, write_results
from pyautoattack.square import SquareAttack

from sad_deploy.classifier import Standardize
from sad_deploy.data.digits import digits_splits
from sad_deploy.evaluation.attacks import CarliniWagner, OnePixel, Problem, Square, Zoo
from sad_deploy.evaluation.oracles import Counts, GradientSource, VictimFile
from sad_deploy.evaluation.threat import ANYWHERE, Threat, lengths
from sad_deploy.fold import fold_batchnorm
from sad_deploy.models.digits import MEAN, STD, DigitsResNet, digits_state_dict
from sad_deploy.to_onnx import to_onnx
from sad_export import attack_graph, two_pass
from sad_runtime.choices import Norm

Array = np.ndarray
LIBRARIES = ("adversarial-robustness-toolbox", "foolbox", "pyautoattack")


class Counted(torch.nn.Module):
    """The network, which counts the images that it is asked of."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.asked = model, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked += len(x)
        return self.model(x)


class Contest:
    """One network in both forms.

    Args:
        folder: Where its graphs go.
    """

    def __init__(self, folder: Path) -> None:
        network = DigitsResNet()
        network.load_state_dict(digits_state_dict())
        self.model = Counted(torch.nn.Sequential(Standardize(MEAN, STD), network).eval())
        forward = to_onnx(fold_batchnorm(network), (1, 16, 16))
        pixels = folder / "pixels.onnx"
        onnx.save(two_pass(forward, eta=0.0, mean=MEAN, std=STD), pixels)
        for of in ("loss", "cotangent"):
            onnx.save(attack_graph(pixels, way="plain", of=of, target="cpu"), folder / f"{of}.onnx")
        self.counts = Counts()
        self.victim = VictimFile(pixels).open(self.counts)
        self.source = GradientSource(folder / "loss.onnx", folder / "cotangent.onnx", self.counts)

    def problem(self, images: Array, labels: Array, threat: Threat) -> Problem:
        rngs = [np.random.default_rng(i) for i in range(len(images))]
        return Problem(images, labels, threat, self.victim, rngs)

    def ours(self, attack: Any, problem: Problem) -> dict[str, float]:
        """Run one of ours."""
        self.counts.forward = self.counts.backward = 0
        started = time.process_time()
        found = attack.run(problem)
        seconds = time.process_time() - started
        asked = self.counts.forward + self.counts.backward
        return self._figures(found.adversarial, problem, asked, seconds)

    def theirs(self, attack: Callable[[], Any], problem: Problem) -> dict[str, float]:
        """Run a library's, which returns images."""
        self.model.asked = 0
        started = time.process_time()
        found = np.asarray(attack())
        seconds = time.process_time() - started
        return self._figures(found.astype(np.float32), problem, self.model.asked, seconds)

    def _figures(self, found: Array, problem: Problem, asked: int, seconds: float) -> dict[str, float]:
        with torch.no_grad():
            answers = self.model.model(torch.from_numpy(found)).argmax(1).numpy()
        broken = answers != problem.labels
        distance = lengths(found - problem.images)[broken]
        return {
            "left_percent": 100 * float((~broken).mean()),
            "median_l2": float(np.median(distance)) if broken.any() else float("inf"),
            "asked_per_image": asked / len(found),
            "cpu_seconds_per_image": seconds / len(found),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"machine": machine(), "images": arguments.images, "rows": {}}
    results["libraries"] = {name: importlib.metadata.version(name) for name in LIBRARIES}
    test = digits_splits()[2].take(np.arange(arguments.images))
    pixels = (test.images / np.float32(255)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(Path(folder))
        for name, found in rows(contest, pixels, test.labels):
            results["rows"][name] = found
            for who, figures in found.items():
                print(f"{name:<22}{who:<14}" + "  ".join(f"{k} {v:.4g}" for k, v in figures.items()))
    write_results(Path(__file__).parent / "results" / "paper_attacks.json", results)


def rows(contest: Contest, pixels: Array, labels: Array) -> Any:
    """Each attack with the figures of both sides."""
    x, y = torch.from_numpy(pixels), torch.from_numpy(labels)
    anywhere = contest.problem(pixels, labels, ANYWHERE)
    bounded = foolbox.PyTorchModel(contest.model, bounds=(0, 1), device="cpu")
    for c in (0.2, 1.0, 10.0):
        attack = foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=1, steps=50, stepsize=0.01, initial_const=c, abort_early=False
        )
        yield (
            f"C&W, c {c:g}, 50 steps",
            {
                "ours": contest.ours(CarliniWagner(contest.source, c, 50), anywhere),
                "foolbox": contest.theirs(lambda a=attack: a(bounded, x, y, epsilons=None)[1], anywhere),
            },
        )
    loss = torch.nn.CrossEntropyLoss()
    art = PyTorchClassifier(contest.model, loss, (1, 16, 16), 10, clip_values=(0, 1))
    one_hot = np.eye(10)[labels]
    zoo = ZooAttack(
        art, learning_rate=0.05, max_iter=15, binary_search_steps=3, initial_const=1.0, abort_early=False,
        use_resize=False, use_importance=False, nb_parallel=32, variable_h=1e-3, verbose=False,
    )  # fmt: skip
    theirs = contest.theirs(lambda: zoo.generate(pixels, one_hot), anywhere)
    asked = int(theirs["asked_per_image"])
    yield "ZOO, the same queries", {"ours": contest.ours(Zoo(asked), anywhere), "ART": theirs}
    half = (pixels + np.roll(pixels, 1, 0)) / 2
    mixed = contest.victim(half).argmax(1)
    pixel = PixelAttack(art, th=1, es=1, max_iter=3, verbose=False)
    problem = contest.problem(half, mixed, ANYWHERE)
    yield (
        "One Pixel, 400 × 3",
        {
            "ours": contest.ours(OnePixel(400, 3), problem),
            "ART": contest.theirs(lambda: pixel.generate(half, np.eye(10)[mixed]), problem),
        },
    )
    square = SquareAttack(
        contest.model, norm="L2", eps=0.6, n_queries=500, n_restarts=1, p_init=0.8, seed=0, device="cpu"
    )
    yield (
        "Square, L2 0.6, 500",
        {
            "ours": contest.ours(Square(500), contest.problem(pixels, labels, Threat(0.6, Norm.L2))),
            "pyautoattack": contest.theirs(lambda: square.perturb(x, y), anywhere),
        },
    )


if __name__ == "__main__":
    main()
