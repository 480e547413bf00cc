"""What `infer` costs beside decoding and the model: CPU, wall time, memory, the first result, going on.

    python benchmarks/pipeline.py [--only overhead memory first resume] [--images 96]

Photographs are made up: 500×375 JPEGs of smooth noise. CPU seconds are the process's, of all threads; the
parts of a ratio take turns in one process, and the ratio is of the medians. Memory is the peak of a process
of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from measuring import machine, write_results
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from sad_runtime.bundle import write_bundle
from sad_runtime.classifier import Classifier
from sad_runtime.devices import available_cores
from sad_runtime.manifest import Defence, Graph, InputSpace, ModelSource, Preprocessing
from sad_runtime.pipeline import Options, classify
from sad_runtime.preprocessing import load
from sad_runtime.results import Columns, Ranked, Row, RunRecord, open_output
from sad_runtime.sources import FileItem
from tests.support.tiny_bundle import linear_model, manifest_of, write_tiny_bundle

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 32
TARGETS = {
    "cpu_ratio": 1.10,
    "overhead_milliseconds": 0.3,
    "memory_ratio": 1.15,
    "first_result_cpu_seconds": 1.5,
    "resume_seconds": 15.0,
    "resume_megabytes": 500.0,
}
# Runs the command line and says on the last line of stdout what it took: VmHWM is the process's own.
_INFER = """
import json, re, resource, sys, time
sys.argv[0] = "sad-deploy"
started = time.perf_counter()
from sad_deploy.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
used = resource.getrusage(resource.RUSAGE_SELF)
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(json.dumps({"seconds": time.perf_counter() - started, "cpu_seconds": used.ru_utime + used.ru_stime,
                  "megabytes": peak / 1024}))
"""


def resnet18_bundle(folder: Path) -> Path:
    """torchvision's ResNet-18 with random weights: the cost does not depend on them."""
    import torch
    import torchvision

    from sad_deploy.fold import fold_batchnorm
    from sad_deploy.to_onnx import to_onnx
    from sad_export import two_pass

    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    forward = to_onnx(fold_batchnorm(model), (3, 224, 224))
    graph = two_pass(forward, eta=0.05, mean=MEAN, std=STD, target="cpu")
    with write_bundle(folder) as draft:
        draft.path("weights.safetensors").write_bytes(b"none")
        onnx.save(graph, draft.path("model.onnx"))
        base = manifest_of(linear_model())
        draft.manifest = type(base)(
            model=ModelSource("torchvision.resnet18", 1000),
            classes=tuple(f"class {k}" for k in range(1000)),
            preprocessing=Preprocessing(color=base.preprocessing.color, resize=256, crop=(224, 224)),
            input_space=InputSpace(MEAN, STD),
            defence=Defence(0.05),
            calibration=base.calibration,
            graphs=(Graph("model.onnx", "fp32", "auto", "cpu", {}),),
        )
    return folder


def photographs(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"{i:05}.jpg" for i in range(count)]
    for path in paths:
        noise = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        noise.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def small_images(folder: Path, count: int) -> list[Path]:
    """Small PNGs, most of them further names of a few files; a thousand a folder."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    paths = []
    original = folder / "none"
    for i in range(count):
        path = folder / f"{i // 1000:04}" / f"{i:07}.png"
        path.parent.mkdir(exist_ok=True)
        if i % 50_000 == 0:  # more names than this one file must not have
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
            original = path
        else:
            os.link(original, path)
        paths.append(path)
    return paths


def cpu_and_wall(job: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return time.process_time() - cpu, time.perf_counter() - wall


def overhead(bundle: Path, paths: Sequence[Path], rounds: int, folder: Path) -> dict[str, Any]:
    """Everything against its two indispensable parts: decoding in one thread, and the model alone."""
    with Classifier.load(bundle, backend="cpu") as classifier:
        preprocessing = classifier.manifest.preprocessing
        items = [FileItem(os.fspath(path)) for path in paths]
        outputs = ("logits", "plain_logits")
        batch = np.stack([load(item, preprocessing).pixels for item in items[:BATCH]])
        record = RunRecord("benchmark", {}, ("images",), ("cpu",))

        def decode() -> None:
            for item in items:
                load(item, preprocessing)

        def model() -> None:
            for _ in range(0, len(items), BATCH):
                classifier.predict_checked(batch, outputs=outputs)

        def everything() -> None:
            with open_output(str(folder / "out.jsonl"), overwrite=True) as output:
                output.begin(record)
                for rows in classify(classifier, items, Options(batch_size=BATCH)):
                    output.write(rows)
                output.publish(Columns(ranked=5))

        jobs = {"decode": decode, "model": model, "everything": everything}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
        for job in jobs.values():
            job()
        for _ in range(rounds):
            for name, job in jobs.items():
                taken[name].append(cpu_and_wall(job))
    cpu = {name: statistics.median(cpu for cpu, _ in runs) for name, runs in taken.items()}
    wall = {name: statistics.median(wall for _, wall in runs) for name, runs in taken.items()}
    parts = cpu["decode"] + cpu["model"]
    return {
        "images": len(items),
        "cpu_milliseconds_an_image": {name: 1000 * value / len(items) for name, value in cpu.items()},
        "cpu_ratio": cpu["everything"] / parts,
        "overhead_milliseconds": 1000 * (cpu["everything"] - parts) / len(items),
        "images_a_second": len(items) / wall["everything"],
        # 1: as fast as the slower of the two stages would be by itself, all cores its own.
        "wall_of_slower_stage": max(wall["decode"] / available_cores(), wall["model"]) / wall["everything"],
        # 1: every core worked on nothing but decoding and the model, all the time.
        "wall_of_all_cores": parts / available_cores() / wall["everything"],
    }


def plain_logits_cost(bundle: Path, rounds: int) -> float:
    """CPU of the model with the first pass's logits asked for, against without."""
    with Classifier.load(bundle, backend="cpu") as classifier:
        images = np.random.default_rng(0).random((8, *classifier.backend.input_shape), dtype=np.float32)
        seconds: dict[tuple[str, ...], list[float]] = {("logits",): [], ("logits", "plain_logits"): []}
        for _ in range(rounds):
            for outputs, taken in seconds.items():
                taken.append(cpu_and_wall(partial(classifier.predict_checked, images, outputs=outputs))[0])
    without, with_plain = (statistics.median(taken) for taken in seconds.values())
    return with_plain / without


def infer(*arguments: object) -> dict[str, float]:
    """Seconds, CPU seconds and peak megabytes of a process that runs the command."""
    command = [sys.executable, "-c", _INFER, "infer", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    taken: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return taken


def memory(bundle: Path, folder: Path) -> dict[str, Any]:
    peaks = {}
    for count in (1000, 100_000):
        small_images(folder / str(count), count)
        taken = infer(folder / str(count), "--bundle", bundle, "--out", folder / f"{count}.jsonl")
        peaks[str(count)] = taken["megabytes"]
    return {"peak_megabytes": peaks, "memory_ratio": peaks["100000"] / peaks["1000"]}


def first_result(bundle: Path, photo: Path, runs: int) -> float:
    """CPU seconds of a process from its start to its end with one image; its files are in the page cache."""
    entry = [sys.executable, "-c", "from sad_deploy.cli import main; main()"]
    seconds = []
    for _ in range(runs + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [*entry, "infer", str(photo), "--bundle", str(bundle), "--out", "-"]
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(seconds[1:])


def resume(bundle: Path, folder: Path, count: int) -> dict[str, Any]:
    """A run over a million images that was cut off before the last one, gone on with."""
    paths = small_images(folder / "million", count)
    out = folder / "million.jsonl"
    infer(paths[0], "--bundle", bundle, "--out", out)  # for the record
    record = RunRecord.read(out.with_name("million.jsonl.run.json"))
    assert record is not None
    record = dataclasses.replace(record, sources=(os.fspath(folder / "million"),))
    record.write(out.with_name("million.jsonl.partial.run.json"))
    out.unlink()
    ranking = tuple(Ranked(k, f"class {k}", 0.25) for k in range(4))
    with out.with_name("million.jsonl.partial").open("w", encoding="utf-8") as journal:
        for path in paths[:-1]:
            status = path.stat()
            row = Row(os.fspath(path), ranking, size=status.st_size, mtime_ns=status.st_mtime_ns)
            journal.write(row.to_json() + "\n")
    taken = infer(folder / "million", "--bundle", bundle, "--out", out, "--resume")
    with out.open("rb") as file:
        rows = sum(1 for _ in file)
    assert rows == count, f"{rows} rows of {count} images"
    return {"rows": count, "journal_megabytes": out.stat().st_size / 2**20, **taken}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("overhead", "memory", "first", "resume")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--images", type=int, default=96, help="photographs")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    path = Path(__file__).parent / "results" / "pipeline.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results |= {"machine": machine(), "targets": TARGETS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = write_tiny_bundle(folder / "tiny", linear_model())
        resnet18 = resnet18_bundle(folder / "resnet18")
        photos = photographs(folder / "photos", arguments.images)
        if "overhead" in arguments.only:
            small = small_images(folder / "small", 5000)
            results["overhead"] = {
                "resnet18, photographs": overhead(resnet18, photos, arguments.rounds, folder),
                "tiny, small images": overhead(tiny, small, arguments.rounds, folder),
            }
            large = write_tiny_bundle(folder / "large", linear_model((3, 224, 224)))
            results["overhead"]["tiny, photographs"] = overhead(large, photos, arguments.rounds, folder)
            results["plain_logits_cpu_ratio"] = plain_logits_cost(resnet18, 3 * arguments.rounds)
        if "memory" in arguments.only:
            results["memory"] = memory(tiny, folder)
        if "first" in arguments.only:
            results["first_result_cpu_seconds"] = {
                "tiny": first_result(tiny, photos[0], arguments.rounds),
                "resnet18": first_result(resnet18, photos[0], arguments.rounds),
            }
        if "resume" in arguments.only:
            results["resume"] = resume(tiny, folder, 1_000_000)
    print(json.dumps({name: value for name, value in results.items() if name != "machine"}, indent=2))
    write_results(path, results)


if __name__ == "__main__":
    main()
