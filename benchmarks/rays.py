"""How near the boundary RayS must be after some queries of an image that it breaks in the end.

    python benchmarks/rays.py [--images 100]

The networks of benchmarks/robustness.py, attacked with 2,000 queries and no image given up. For each number
of queries: how far the boundary still was, in ε, for images that are broken later (the farthest), and which
share of the images that are never broken has it farther than 1.5 ε, so that giving these up saves the rest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, write_results
from robustness import NETWORKS

from sad_deploy.data.digits import digits_splits
from sad_deploy.evaluation.attacks import Problem, rays
from sad_deploy.evaluation.oracles import Counts
from sad_deploy.evaluation.subject import judged_file
from sad_deploy.evaluation.threat import Threat
from sad_runtime.bundle import Bundle
from sad_runtime.choices import BackendChoice

QUERIES = 2000
AFTER = (200, 300, 500, 700, 1000, 1300)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100)
    images = parser.parse_args().images
    rays.PATIENCE = 0  # never
    results: dict[str, Any] = {"machine": machine(), "images": images}
    with tempfile.TemporaryDirectory() as folder:
        for name, (network, eta, epsilon) in NETWORKS.items():
            bundle = Path(folder) / name
            for words in (("calibrate", *network, "--eta", eta, "--out"), ("export",)):
                subprocess.run([sys.executable, "-m", "sad_deploy", "-q", *words, bundle], check=True)
            results[name] = traced(bundle, float(epsilon), images)
            print(name, results[name])
    write_results(Path(__file__).parent / "results" / "rays.json", results)


def traced(bundle: Path, epsilon: float, images: int) -> dict[str, Any]:
    """What became of the images, and how far the boundary was on the way."""
    _, _, file = judged_file(Bundle.open(bundle), BackendChoice.CPU, "fp32")
    test = digits_splits()[2].take(np.arange(images))
    assert test.labels is not None
    pixels, labels = test.images.astype(np.float32) / np.float32(255), test.labels.astype(np.int64)
    rngs = [np.random.default_rng(i) for i in range(images)]
    attack = Traced(Problem(pixels, labels, Threat(epsilon), file.open(Counts()), rngs), QUERIES)
    broken = attack.run().broken
    found: dict[str, Any] = {"epsilon": epsilon, "broken": int(broken.sum())}
    for queries in AFTER:
        far = attack.far_after[queries]
        later = [distance / epsilon for i, distance in far.items() if broken[i]]
        never = [distance / epsilon > rays.FAR for i, distance in far.items() if not broken[i]]
        found[f"after_{queries}"] = {
            "broken_later": len(later),
            "their_farthest_in_epsilon": round(max(later, default=0.0), 3),
            "share_of_the_others_beyond": round(float(np.mean(never)), 3) if never else None,
        }
    return found


class Traced(rays._Rays):
    """Notes how far the boundary is after some queries."""

    far_after: dict[int, dict[int, float]]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.far_after = defaultdict(dict)

    def _fools(self, index: Any, signs: Any, distance: Any) -> Any:
        fooled = super()._fools(index, signs, distance)
        for i in index[np.isin(self.asked[index], AFTER)]:
            if not self.search.broken[i]:
                self.far_after[int(self.asked[i])][int(i)] = float(self.far[i])
        return fooled


if __name__ == "__main__":
    main()
