"""Part `server` of serving.py: `infer --server` against a server on loopback beside the same loop here.

The server is the Triton of tests/support/triton_server.py. Its wheel has no onnxruntime backend: the graph
runs in onnxruntime all the same, under Triton's Python backend, a process that tensors are copied to.
Client and server share the machine's cores, which the local loop has to itself.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from pipeline import photographs, resnet18_bundle, small_images

from sad_deploy.triton import TritonRequest, write_repository
from sad_runtime import Batching, Classifier
from sad_runtime.backends.server import Server
from sad_runtime.bundle import Bundle
from sad_runtime.choices import TritonDevice, TritonInput
from tests.support.tiny_bundle import linear_model, write_tiny_bundle
from tests.support.triton_server import Address, serving, swapped

BATCH = 16


def of_tree(process: int) -> float:
    """User and system seconds of a process and those it started."""
    folder = Path(f"/proc/{process}")
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    children = [int(n) for task in folder.glob("task/*/children") for n in task.read_text().split()]
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(map(of_tree, children))


@contextlib.contextmanager
def served(bundle: Path, work: Path) -> Iterator[Address]:
    work.mkdir()
    for name, images in ((None, TritonInput.FLOAT), ("bytes", TritonInput.UINT8)):
        request = TritonRequest(work / "written", name=name, device=TritonDevice.CPU, input=images)
        write_repository(Bundle.open(bundle), request)
    with serving(swapped(work / "written", work / "served"), work) as address:
        yield address


def throughput(
    classifiers: dict[str, Classifier], server: int, files: Sequence[Path], rounds: int
) -> dict[str, Any]:
    """Images a second of each in turn, CPU of an image, the server's included, their ratios to `local`."""
    taken: dict[str, list[float]] = {name: [] for name in classifiers}
    used: dict[str, list[float]] = {name: [] for name in classifiers}
    for _ in range(rounds + 1):
        for name, classifier in classifiers.items():
            cpu, began = time.process_time() + of_tree(server), time.perf_counter()
            assert all(row.error is None for row in classifier.stream(files, batch_size=BATCH))
            taken[name].append(time.perf_counter() - began)
            used[name].append(time.process_time() + of_tree(server) - cpu)
    rates = {name: len(files) / statistics.median(runs[1:]) for name, runs in taken.items()}
    cpu = {name: 1000 * statistics.median(runs[1:]) / len(files) for name, runs in used.items()}
    return {
        "images": len(files),
        "images_a_second": rates,
        "cpu_milliseconds_an_image": cpu,
        "against_local": {name: rate / rates["local"] for name, rate in rates.items() if name != "local"},
        "cpu_against_local": {name: each / cpu["local"] for name, each in cpu.items() if name != "local"},
    }


def latency(classifier: Classifier, files: Sequence[bytes], rate: float, seconds: float) -> dict[str, float]:
    """Of `submit`, images arriving at random, so many a second; from when each was due."""
    due = np.cumsum(np.random.default_rng(0).exponential(1 / rate, max(int(rate * seconds), 50)))
    answered = np.zeros(len(due))
    began = time.perf_counter()
    futures: list[Future[Any]] = []

    def note(number: int) -> None:
        answered[number] = time.perf_counter() - began - due[number]

    for number, at in enumerate(due):
        time.sleep(max(began + at - time.perf_counter(), 0))
        future = classifier.submit(files[number % len(files)], block=True)
        future.add_done_callback(lambda _, number=number: note(number))  # type: ignore[misc]
        futures.append(future)
    for future in futures:
        future.result()
    p50, p99 = (float(np.percentile(1000 * answered, each)) for each in (50, 99))
    return {"requests": len(due), "requests_a_second": rate, "p50_ms": p50, "p99_ms": p99}


def remote(folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """A linear network, all overhead, of small images and of photographs, and a resnet18 of photographs."""
    photos = photographs(folder / "remote-photos", 64)
    networks = {
        "linear, 8×8": (
            write_tiny_bundle(folder / "linear", linear_model()),
            small_images(folder / "small", 2000),
        ),
        "linear, 224×224": (write_tiny_bundle(folder / "wide", linear_model((3, 224, 224))), photos * 4),
        "resnet18, 224×224": (resnet18_bundle(folder / "remote-resnet18"), photos),
    }
    results: dict[str, Any] = {"note": " ".join((__doc__ or "").split("\n\n")[1].split()), "batch": BATCH}
    for name, (bundle, files) in networks.items():
        with contextlib.ExitStack() as stack:
            address = stack.enter_context(served(bundle, folder / f"{bundle.name}-work"))
            where: dict[str, Any] = {
                "local": {"backend": "cpu"},
                "grpc": {"server": Server(f"grpc://{address.grpc}")},
                "http": {"server": Server(f"http://{address.http}")},
            }
            if name == "linear, 224×224":  # where what travels is nearly all there is
                where["grpc, bytes"] = {"server": Server(f"grpc://{address.grpc}", "bytes")}
            options = Batching(max_batch=BATCH)
            classifiers = {
                each: stack.enter_context(Classifier.load(bundle, batching=options, **given))
                for each, given in where.items()
            }
            found = throughput(classifiers, address.process.pid, files, rounds)
            rate = min(found["images_a_second"].values()) / 2
            data = [path.read_bytes() for path in files]
            found["half_load"] = {
                each: latency(classifier, data, rate, seconds) for each, classifier in classifiers.items()
            }
            results[name] = found
            print(name, found)
    return results
