"""`sad-deploy evaluate`, killed at random and called again, beside the same command left alone.

    python benchmarks/kills.py [--kills 20] [--images 12]

The default digits are calibrated and exported once, and evaluated with all attacks at ε 0.05. Each kill is
SIGKILL: one in four at a random moment after the start, the others after some more results of pieces and a
random moment. What is compared is every bit that attacks gave, and `evaluation.json` but for its times.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, write_results

LONGEST = 300
"""Seconds after which a call is killed whatever it has done."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = folder / "model"
        sad_deploy("calibrate", "--eta", "0.3", "--out", bundle).wait()
        sad_deploy("export", bundle).wait()
        for name in ("whole", "killed"):
            shutil.copytree(bundle, folder / name / "model")
        words = ("--epsilon", "0.05", "--images", str(arguments.images), "--processes", "1")
        assert evaluate(folder / "whole", words).wait() == 0
        had = killed(folder / "killed", words, arguments.kills, np.random.default_rng(arguments.seed))
        assert evaluate(folder / "killed", words).wait() == 0
        whole, resumed = (outcome(folder / name) for name in ("whole", "killed"))
    same = whole.keys() == resumed.keys() and all(whole[name] == resumed[name] for name in whole)
    found = {"kills": len(had), "results_at_each_kill": had, "results": len(whole), "same_bits": same}
    print(f"{len(had)} kills: {'the same bits' if same else 'OTHER BITS'} in {len(whole)} results")
    results = {"machine": machine(), "images": arguments.images, "seed": arguments.seed, **found}
    write_results(Path(__file__).parent / "results" / "kills.json", results)
    sys.exit(0 if same else 1)


def sad_deploy(*words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sad_deploy", "--quiet", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def evaluate(folder: Path, words: tuple[str, ...]) -> subprocess.Popen[bytes]:
    return sad_deploy("evaluate", folder / "model", *words, "--out", folder / "evaluation")


def killed(folder: Path, words: tuple[str, ...], kills: int, rng: np.random.Generator) -> list[int]:
    """Kill the command so many times before it ends; how many results there were each time."""
    had: list[int] = []
    while len(had) < kills:
        wanted = count(folder) + int(rng.integers(0, 3))
        early = rng.random() < 0.25
        wait = float(rng.uniform(0, 6 if early else 0.2))
        process, started = evaluate(folder, words), time.monotonic()
        while not early and count(folder) < wanted and time.monotonic() - started < LONGEST:
            if process.poll() is not None:
                sys.exit(f"it ended before it could be killed {kills} times: give more --images")
            time.sleep(0.005)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        had.append(count(folder))
        print(f"kill {len(had)}: {had[-1]} results")
    return had


def count(folder: Path) -> int:
    return sum(1 for _ in (folder / "evaluation").rglob("*.npz"))


def outcome(folder: Path) -> dict[str, Any]:
    """All results of pieces by name, as bytes, and the record without its times."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "evaluation").rglob("*.npz")):
        with np.load(path) as stored:
            arrays = (stored[name] for name in ("index", "broken", "adversarial"))
            found[path.name] = [(str(array.dtype), array.shape, array.tobytes()) for array in arrays]
    recorded = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    found["evaluation.json"] = without_times(recorded)
    return found


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key != "cpu_seconds"}
    return [without_times(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
