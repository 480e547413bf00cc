"""`sad-deploy calibrate` killed at random and called again with --resume, beside the same command left alone.

    python benchmarks/kills_calibrate.py [--kills 20] [--batches 300]

The default digits with the choice of η and PGD-10, batches of 32. Each kill is SIGKILL: one in four at a
random moment after the start, the others a random moment after the state was saved again. What is compared is
every byte of the bundle.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from kills import LONGEST, sad_deploy
from measuring import machine, write_results

from sad_deploy.kept_state import state_file


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    words = ("--batches", str(arguments.batches), "--batch-size", "32")
    with tempfile.TemporaryDirectory() as temporary:
        whole, resumed = Path(temporary) / "whole", Path(temporary) / "resumed"
        assert calibrate(whole, *words).wait() == 0
        killed(resumed, words, arguments.kills, np.random.default_rng(arguments.seed))
        assert calibrate(resumed, *words, "--resume").wait() == 0
        contents = [
            {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            for folder in (whole, resumed)
        ]
        left = state_file(resumed).exists()
    same = contents[0] == contents[1] and not left
    print(f"{arguments.kills} kills: {'the same bits' if same else 'OTHER BITS'} in {len(contents[0])} files")
    given = {name: getattr(arguments, name) for name in ("kills", "batches", "seed")}
    results = {"machine": machine(), **given, "files": len(contents[0]), "same_bits": same}
    write_results(Path(__file__).parent / "results" / "kills_calibrate.json", results)
    sys.exit(0 if same else 1)


def calibrate(out: Path, *words: str) -> subprocess.Popen[bytes]:
    return sad_deploy("calibrate", *words, "--out", out)


def killed(out: Path, words: tuple[str, ...], kills: int, rng: np.random.Generator) -> None:
    """Kill the command so many times before it ends."""
    for kill in range(kills):
        before = saved_at(out)
        early = rng.random() < 0.25
        process = calibrate(out, *words, "--resume")
        started = time.monotonic()
        while not early and saved_at(out) == before and time.monotonic() - started < LONGEST:
            if process.poll() is not None:
                sys.exit(f"it ended before it could be killed {kills} times: give more --batches")
            time.sleep(0.005)
        time.sleep(float(rng.uniform(0, 6 if early else 0.5)))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            sys.exit(f"it ended before it could be killed {kills} times: give more --batches")
        print(f"kill {kill + 1}: {'early' if early else 'after the state was saved'}")


def saved_at(out: Path) -> float | None:
    state = state_file(out)
    return state.stat().st_mtime if state.exists() else None


if __name__ == "__main__":
    main()
