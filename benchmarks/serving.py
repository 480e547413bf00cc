"""What a service costs beside the local loop: throughput, latency at half load, twice the load it can bear.

    python benchmarks/serving.py [--images 64] [--rounds 3] [--seconds 30] [--overload 600]
        [--only example server]

The local loop is `Classifier.stream` at batch 16, as `infer` runs; against it are `Classifier.submit` in the
same process, and examples/serve_fastapi.py as a process of its own with clients on loopback. The three take
turns, and ratios are of the medians; on a shared machine, trust those of CPU. A resnet18 with random weights
and 500×375 JPEGs, as in pipeline.py. Under twice the load the process's memory is read all along, beside its
own counts of images: what it accepted should be what was answered with 200. The part `server` is in
serving_remote.py.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, write_results
from pipeline import photographs, resnet18_bundle
from serving_remote import remote

from sad_runtime import Batching, Classifier

BATCH = 16
CLIENTS = 32
WAITING = 64
SERVE = Path(__file__).parents[1] / "examples" / "serve_fastapi.py"
TARGETS = {"http_against_local": 0.8, "server_against_local": 0.8}
PARTS = ("example", "server")


class Server:
    """The example as a process, and its clients: a connection for every image."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self._port = port

    def classify(self, data: bytes) -> int:
        """The status, once the whole answer is there."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        with contextlib.closing(connection):
            connection.request("POST", "/classify", data)
            response = connection.getresponse()
            json.loads(response.read())
            return int(response.status)

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def counts(self) -> dict[str, int]:
        """Images accepted and what became of them, by the process's own count."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=600) as answer:
            text = answer.read().decode()
        found = dict(re.findall(r'sad_images_total\{result="(\w+)"\} (\d+)', text))
        found["waiting"] = re.findall(r"sad_images_waiting (\d+)", text)[0]
        return {name: int(count) for name, count in found.items()}

    def megabytes(self, peak: bool = False) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+)", status)
        assert found is not None
        return int(found[1]) / 1024


@contextlib.contextmanager
def serving(bundle: Path, backend: str, log: Path) -> Iterator[Server]:
    command = [sys.executable, SERVE, bundle, "--port", "0", "--backend", backend]
    command += ["--max-batch", str(BATCH), "--max-waiting", str(WAITING)]
    with log.open("wb") as file:
        process = subprocess.Popen([str(part) for part in command], stderr=file)
    try:
        while not (found := re.search(r"running on http://[\d.]+:(\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield Server(process, int(found[1]))
    finally:
        process.terminate()
        process.wait()


def seconds(job: Callable[[], object]) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def throughput(classifier: Classifier, server: Server, files: Sequence[bytes], rounds: int) -> dict[str, Any]:
    """Images a second of the three ways, and CPU of an image, clients' included."""

    def local() -> None:
        assert all(row.error is None for row in classifier.stream(files, batch_size=BATCH))

    def submitted() -> None:
        for future in [classifier.submit(data, block=True) for data in files]:
            future.result()

    def over_http() -> None:
        with ThreadPoolExecutor(CLIENTS) as clients:
            assert set(clients.map(server.classify, files)) == {200}

    jobs = {"local": local, "submit": submitted, "http": over_http}
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    used: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            before = time.process_time() + server.cpu_seconds()
            taken[name].append(seconds(job))
            used[name].append(time.process_time() + server.cpu_seconds() - before)
    rates = {name: len(files) / statistics.median(runs[1:]) for name, runs in taken.items()}
    cpu = {name: 1000 * statistics.median(runs[1:]) / len(files) for name, runs in used.items()}
    return {
        "cpu_milliseconds_an_image": cpu,
        "submit_cpu_against_local": cpu["submit"] / cpu["local"],
        "http_cpu_against_local": cpu["http"] / cpu["local"],
        "images_a_second": rates,
        "submit_against_local": rates["submit"] / rates["local"],
        "http_against_local": rates["http"] / rates["local"],
    }


def under_load(server: Server, files: Sequence[bytes], rate: float, duration: float) -> dict[str, Any]:
    """Arrivals at random, so many a second, whoever is still waiting; latency from when each was due."""
    rng = np.random.default_rng(0)
    due = np.cumsum(rng.exponential(1 / rate, int(rate * duration)))
    before, counts, began = server.megabytes(), server.counts(), time.perf_counter()
    ended = threading.Event()
    memory: list[float] = []

    def watch() -> None:
        while not ended.wait(max(duration / 20, 1)):
            memory.append(server.megabytes())

    def ask(number: int) -> tuple[int, float]:
        at = began + due[number]
        time.sleep(max(at - time.perf_counter(), 0))
        return server.classify(files[number % len(files)]), time.perf_counter() - at

    watching = threading.Thread(target=watch)
    watching.start()
    with ThreadPoolExecutor(min(len(due), 400)) as clients:
        asked = list(clients.map(ask, range(len(due))))
    taken = time.perf_counter() - began
    ended.set()
    watching.join()
    latencies = [1000 * latency for status, latency in asked if status == 200]
    refusals = [1000 * latency for status, latency in asked if status == 503]
    return {
        "seconds": taken,
        "requests": len(asked),
        "requests_a_second": rate,
        "statuses": dict(sorted(Counter(status for status, _ in asked).items())),
        "counted_by_the_server": {name: n - counts[name] for name, n in server.counts().items()},
        "answered_a_second": len(latencies) / taken,
        "p50_ms": float(np.percentile(latencies, 50)),
        "p99_ms": float(np.percentile(latencies, 99)),
        "p99_ms_of_503": float(np.percentile(refusals, 99)) if refusals else None,
        "megabytes": {
            "before": before,
            "meanwhile": memory,
            "after": server.megabytes(),
            "peak": server.megabytes(peak=True),
        },
    }


def batches_at_once(classifier: Classifier, rounds: int) -> dict[str, float]:
    """Images a second of four threads with free access to the backend, against one at a time, per batch."""
    found = {}
    for batch in (1, 4):
        images = np.random.default_rng(0).random((batch, *classifier.backend.input_shape), dtype=np.float32)
        lock = threading.Lock()

        def run(guard: Any, images: Any = images) -> None:
            with guard:
                classifier.backend.run(images, ("logits",))

        taken: dict[str, list[float]] = {"locked": [], "free": []}
        for _ in range(rounds + 1):
            for name, guard in (("locked", lock), ("free", contextlib.nullcontext())):
                with ThreadPoolExecutor(4) as threads:
                    jobs = [guard] * (32 // batch)
                    taken[name].append(seconds(lambda: list(threads.map(run, jobs))))  # noqa: B023
        locked, free = (statistics.median(taken[name][1:]) for name in ("locked", "free"))
        found[f"batch {batch}"] = locked / free
    return found


def example(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """examples/serve_fastapi.py and `submit` beside the local loop."""
    bundle = resnet18_bundle(folder / "resnet18")
    files = [path.read_bytes() for path in photographs(folder / "photos", given.images)]
    with (
        Classifier.load(bundle, backend=given.backend, batching=Batching(max_batch=BATCH)) as classifier,
        serving(bundle, given.backend, folder / "log") as server,
    ):
        results: dict[str, Any] = {"throughput": throughput(classifier, server, files, given.rounds)}
        rate = results["throughput"]["images_a_second"]["http"]
        results["half_load"] = under_load(server, files, rate / 2, given.seconds)
        results["twice_the_load"] = under_load(server, files, 2 * rate, given.overload)
        results["free_against_locked"] = batches_at_once(classifier, given.rounds)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30, help="of half load")
    parser.add_argument("--overload", type=float, default=30, help="seconds of twice the load")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    path = Path(__file__).parent / "results" / "serving.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results |= {"machine": machine(), "targets": TARGETS, "backend": given.backend}
    with tempfile.TemporaryDirectory() as name:
        if "example" in given.only:
            results |= example(Path(name), given)
        if "server" in given.only:
            results["server"] = remote(Path(name), given.rounds, given.seconds)
    print(json.dumps({name: value for name, value in results.items() if name != "machine"}, indent=2))
    write_results(path, results)


if __name__ == "__main__":
    main()
