"""`sad-deploy infer --resume`, killed at random, here and with its model on a server that is killed as well.

    SAD_DEPLOY_TRITON=DIR python benchmarks/kills_infer.py [--kills 100] [--images 60]

Photographs that are slow to decode, a few files that are none, a linear network; so many kills (SIGKILL) of
runs on the CPU, and as many of runs that ask Triton on loopback, half by gRPC and half by HTTP. One in four
kills is at a random moment after the start, the others after some more rows. A run that ends is compared with
one that nobody disturbed: every image once, the same row; and the next begins. In one server run of five the
server is killed meanwhile and started again on the same ports: half of the clients wait for it and must end
right; the others have no patience, must stop with one line, and are called again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, write_results
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from sad_deploy.triton import TritonRequest, write_repository
from sad_runtime.bundle import Bundle
from tests.support.tiny_bundle import linear_model, write_tiny_bundle
from tests.support.triton_server import Address, free_ports, serving, swapped

DONE = 3
"""Exit code of a run in which some images failed."""

STOPPED = 2


def photographs(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        noise.resize((1200, 900)).save(folder / f"{i:03}.jpg")
        if i % 20 == 0:
            (folder / f"{i:03}.png").write_bytes(b"no image")
    return folder


class TritonThatDies:
    """A server that can be killed and started again on its ports."""

    def __init__(self, bundle: Path, work: Path) -> None:
        work.mkdir()
        write_repository(Bundle.open(bundle), TritonRequest(work / "written"))
        self._repository, self._work = swapped(work / "written", work / "served"), work
        self._ports = free_ports(2)
        self._running = contextlib.ExitStack()
        self.kills = 0
        self.start()

    def start(self) -> None:
        self.address: Address = self._running.enter_context(
            serving(self._repository, self._work, ports=self._ports)
        )

    def kill(self) -> None:
        self.address.stop()
        self._running.close()
        self.kills += 1

    def close(self) -> None:
        self._running.close()


class Runs:
    """One kind of run: its command, and what came of it."""

    def __init__(self, folder: Path, words: list[str], rng: np.random.Generator) -> None:
        folder.mkdir()
        self.words, self.rng = words, rng
        self.out = folder / "rows.jsonl"
        self.counts: Counter[str] = Counter()
        self.rows_at_kills: list[int] = []
        self.largest_difference = 0.0
        self.begin("--overwrite").wait()
        self.whole = self.read()
        self.clear()

    def begin(self, *more: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "sad_deploy",
            "--quiet",
            "infer",
            *self.words,
            "--out",
            str(self.out),
        ]
        return subprocess.Popen(
            [*command, *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def clear(self) -> None:
        for path in self.out.parent.glob("rows.jsonl*"):
            path.unlink()

    def rows(self) -> int:
        """So far, finished or not."""
        paths = (self.out, self.out.with_name("rows.jsonl.partial"))
        return next((path.read_bytes().count(b"\n") for path in paths if path.exists()), 0)

    def killed(self) -> None:
        """Begin it, kill it; where it was faster, compare what it wrote."""
        wanted, early = self.rows() + int(self.rng.integers(1, 30)), self.rng.random() < 0.25
        process, began = self.begin("--resume"), time.monotonic()
        wait = float(self.rng.uniform(0, 2.5)) if early else math.inf
        while process.poll() is None and time.monotonic() - began < wait and (early or self.rows() < wanted):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        said = process.communicate()[1]
        if process.returncode == -signal.SIGKILL:
            self.rows_at_kills.append(self.rows())
            self.counts["killed"] += 1
        else:
            self.ended(process.returncode, said)

    def ended(self, code: int, said: str) -> None:
        """A run that nobody killed: right to the last row, or one line and what it had is kept."""
        assert "Traceback" not in said, said
        if code == STOPPED:
            errors = [line for line in said.splitlines() if "error" in line]
            assert len(errors) == 1 and "has not answered" in said, said
            self.counts["stopped with one line"] += 1
            return
        assert code == DONE, (code, said)
        found = self.read()
        assert [row["path"] for row in found] == [row["path"] for row in self.whole]
        for got, want in zip(found, self.whole, strict=True):
            self.largest_difference = max(self.largest_difference, unlike(got, want))
        self.counts["ended right"] += 1
        self.clear()

    def with_server_killed(self, server: TritonThatDies) -> None:
        """Begin it, kill the server among its rows, and start that again."""
        patient = self.rng.random() < 0.5
        wanted = self.rows() + int(self.rng.integers(1, 20))
        process = self.begin("--resume", "--server-patience", "60" if patient else "0.3")
        while process.poll() is None and self.rows() < wanted:
            time.sleep(0.002)
        server.kill()
        time.sleep(float(self.rng.uniform(0, 1)))
        self.counts["server killed, patient" if patient else "server killed, no patience"] += 1
        if not patient:
            said = process.communicate()[1]
        server.start()
        if patient:
            said = process.communicate()[1]
        self.ended(process.returncode, said)

    def record(self) -> dict[str, Any]:
        return {
            **self.counts,
            "rows_at_kills": self.rows_at_kills,
            "largest_difference_of_a_probability": self.largest_difference,
        }


def unlike(got: Any, want: Any) -> float:
    """Largest difference of two floats at the same place; all else is the same."""
    if isinstance(want, float):
        return abs(got - want)
    if isinstance(want, dict):
        assert got.keys() == want.keys()
        return max((unlike(got[name], want[name]) for name in want), default=0.0)
    if isinstance(want, list):
        return max((unlike(*pair) for pair in zip(got, want, strict=True)), default=0.0)
    assert got == want, (got, want)
    return 0.0


def until(runs: list[Runs], kills: int, turn: Callable[[Runs], None]) -> None:
    """In turns, until there were so many kills; then each is left to end."""
    while sum(each.counts["killed"] for each in runs) < kills:
        for each in runs:
            turn(each)
    for each in runs:
        process = each.begin("--resume")
        said = process.communicate()[1]
        each.ended(process.returncode, said)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="of runs here, and of runs with a server")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, began = np.random.default_rng(given.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        bundle = write_tiny_bundle(folder / "tiny", linear_model(), references=4)
        photos = photographs(folder / "photos", given.images)
        words = [str(photos), "--bundle", str(bundle), "--batch-size", "4", "--workers", "1"]
        here = Runs(folder / "here", [*words, "--backend", "cpu"], rng)
        until([here], given.kills, Runs.killed)
        print("here", here.record())
        server = TritonThatDies(bundle, folder / "triton")
        stack.callback(server.close)
        urls = {"grpc": f"grpc://{server.address.grpc}", "http": f"http://{server.address.http}"}
        there = {
            scheme: Runs(folder / scheme, [*words, "--server", url], rng) for scheme, url in urls.items()
        }

        def turn(runs: Runs) -> None:
            if rng.random() < 0.2:
                runs.with_server_killed(server)
            else:
                runs.killed()

        until(list(there.values()), given.kills, turn)
        found = {"here": here.record(), **{scheme: runs.record() for scheme, runs in there.items()}}
        found["kills_of_the_server"] = server.kills
    print(json.dumps(found))
    results = {"machine": machine(), "images": given.images, "seconds": time.monotonic() - began, **found}
    write_results(Path(__file__).parent / "results" / "kills_infer.json", results)


if __name__ == "__main__":
    main()
