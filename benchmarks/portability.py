"""Is the saliency of a graph the same in every runtime that reads ONNX?

    python benchmarks/portability.py write graphs [--cache forward_graphs] [--forms portable gradient]
    python benchmarks/portability.py run graphs [--runtimes openvino tract]

``write`` makes the graphs of one torchvision classifier of each family, random weights, in every form, with
images and what the newest onnxruntime makes of them; it needs sad_export, and torchvision where the cache has
no forward graph. ``run`` needs numpy and the runtime alone: run it in one environment after the other, each
replaces its own rows of the results. PYTHONPATH=runtime where sad_runtime is not installed.

Each runtime is a function from a file to a function from inputs to outputs. A network runs at a batch of 1
and of 3, in a process of its own, as some runtimes end their process or never come back.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, write_results
from runtimes import RUNTIMES, Built, with_onnxruntime

Array = np.ndarray[Any, Any]

NETWORKS = {
    "resnet18": 96,
    "vgg11_bn": 96,
    "densenet121": 96,
    "googlenet": 96,
    "inception_v3": 96,
    "mobilenet_v2": 96,
    "mobilenet_v3_small": 96,
    "efficientnet_b0": 96,
    "mnasnet1_0": 96,
    "regnet_y_400mf": 96,
    "resnext50_32x4d": 96,
    "shufflenet_v2_x1_0": 96,
    "maxvit_t": 224,
}
FORMS = ("portable", "conv", "cpu", "gradient", "loss", "fp16", "int8")
"""Two passes; with gradients by Conv; for onnxruntime's CPU; the bare gradient; that of the loss; lowered."""

BATCHES = (1, 3)
SECONDS = 300
LIMITS = {
    "portable": {"relative_l2": 2e-3, "cosine": 0.99},
    "fp16": {"relative_l2": 2e-2, "cosine": 0.9},
    "int8": {"relative_l2": 0.2, "cosine": 0.8},
}
"""Largest error of logits and least cosine of the saliency, against onnxruntime on the same file."""

SPAWN = multiprocessing.get_context("spawn")


def write(arguments: argparse.Namespace) -> None:
    """Every network in every form, and what onnxruntime makes of it."""
    import onnx
    import same_graphs

    from sad_export.trial_images import smooth_noise

    arguments.folder.mkdir(parents=True, exist_ok=True)
    cache = arguments.cache or arguments.folder
    for name in arguments.networks:
        size = arguments.size or NETWORKS[name]
        forward = cache / f"{name}-{size}.onnx"
        if not forward.exists():
            same_graphs.export(name, size, forward)
        images = smooth_noise(max(BATCHES), 3, size, size)
        for form in arguments.forms:
            path = arguments.folder / f"{name}.{form}.onnx"
            graph = in_form(form, forward, images)
            onnx.save(graph, str(path))
            arrays = {f"in {graph.graph.input[0].name}": images}
            if form == "loss":
                arrays["in label"] = np.arange(len(images))
            names = [value.name for value in graph.graph.output]
            expected = with_onnxruntime(path, names)({key[3:]: array for key, array in arrays.items()})
            arrays |= {f"out {key}": array for key, array in zip(names, expected, strict=True)}
            np.savez(path.with_suffix(".npz"), **arrays)
            print(path, flush=True)


def in_form(form: str, forward: Path, images: Array) -> Any:
    """A network's graph, an onnx.ModelProto, in one of ``FORMS``."""
    import same_graphs
    from variants import two_pass_in

    from sad_export import input_gradient, two_pass

    defence: dict[str, Any] = {"eta": 0.01, "normalization": "rms"}
    if form in ("gradient", "loss"):
        return input_gradient(forward, of="loss" if form == "loss" else "largest", notice=len)
    if form == "fp16":
        return two_pass_in("fp16", forward, images, **defence)
    if form == "int8":
        return same_graphs.lowered(forward, images, "int8")[0]
    options = {"conv": {"conv_gradient": "conv"}, "cpu": {"target": "cpu"}}.get(form, {})
    return two_pass(forward, **defence, **options, notice=len)


def judged(got: dict[str, Array], want: dict[str, Array], batch: int) -> dict[str, Any]:
    """Largest relative L2 error and, of a map, least cosine over the images; are the labels equal?"""
    found: dict[str, Any] = {}
    for name, full in want.items():
        a = np.asarray(got[name]).astype(np.float64)
        b = full[:batch].astype(np.float64)
        if a.shape != b.shape:
            found[name] = {"shape": list(a.shape), "instead_of": list(b.shape)}
            continue
        if a.ndim == 2:
            found[name] = {"labels_equal": bool((a.argmax(1) == b.argmax(1)).all())}
        a, b = a.reshape(batch, -1), b.reshape(batch, -1)
        norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        row = found.setdefault(name, {})
        row["relative_l2"] = float((np.linalg.norm(a - b, axis=1) / norms[1]).max())
        if full.ndim == 4:
            row["cosine"] = float(((a * b).sum(1) / np.maximum(norms[0] * norms[1], 1e-300)).min())
    return found


def measured(runtime: str, path: Path) -> dict[str, Any]:
    """One graph in one runtime, at every batch; in a process of its own."""
    here, there = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=_measure, args=(there, runtime, path))
    started = time.monotonic()
    process.start()
    there.close()
    result: dict[str, Any] = {}
    try:
        while here.poll(max(0.0, SECONDS - (time.monotonic() - started))):
            result |= here.recv()
        result["refused"] = f"not ended after {SECONDS} s"
        process.kill()
    except EOFError:
        process.join()
        if process.exitcode:
            result["refused"] = f"its process ended with {process.exitcode}"
    return result | {"seconds": round(time.monotonic() - started, 1)}


def _measure(pipe: Connection, runtime: str, path: Path) -> None:
    with np.load(path.with_suffix(".npz")) as arrays:
        feeds = {key[3:]: arrays[key] for key in arrays if key.startswith("in ")}
        want = {key[4:]: arrays[key] for key in arrays if key.startswith("out ")}
    try:
        predict = RUNTIMES[runtime][2](path, list(want))
        for batch in BATCHES:
            got = predict({name: array[:batch] for name, array in feeds.items()})
            pipe.send({f"batch {batch}": judged(dict(zip(want, got, strict=True)), want, batch)})
    except Built:
        pipe.send({"built": True})
    except BaseException as error:  # also what a runtime's Rust panics with
        text = " ".join(f"{type(error).__name__}: {error}".split())
        pipe.send({"refused": text[:400]})


def verdict(form: str, result: dict[str, Any]) -> str:
    """``right``, ``wrong`` with its worst figures, or ``refused``."""
    if result.get("built"):
        return "builds"
    if "refused" in result:
        return f"refused: {result['refused'][:150]}"
    rows = [row for key, batch in result.items() if key.startswith("batch") for row in batch.values()]
    if any("shape" in row for row in rows):
        return f"wrong: shapes {[row for row in rows if 'shape' in row]}"
    labels = all(row.get("labels_equal", True) for row in rows)
    cosine = min(row["cosine"] for row in rows if "cosine" in row)
    logits = max(row["relative_l2"] for row in rows if "labels_equal" in row)
    limits = LIMITS.get(form, LIMITS["portable"])
    right = labels and cosine >= limits["cosine"] and logits <= limits["relative_l2"]
    shown = f"logits {logits:.1e}, cosine {cosine:.6f}{'' if labels else ', other labels'}"
    return f"{'right' if right else 'wrong'}: {shown}"


def run(arguments: argparse.Namespace) -> None:
    """What is installed, on what was written; results of other versions stay."""
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else {}
    for runtime in arguments.runtimes:
        module, package, _ = RUNTIMES[runtime]
        if importlib.util.find_spec(module) is None:
            print(f"{runtime}: not installed here")
            continue
        key = f"{runtime} {version_of(package)}"
        for form in arguments.forms:
            for name in arguments.networks:
                path = arguments.folder / f"{name}.{form}.onnx"
                if not path.exists():
                    continue
                result = measured(runtime, path)
                result["verdict"] = verdict(form, result)
                rows.setdefault(key, {}).setdefault(form, {})[name] = result
                print(f"{key}  {form:9}{name:20}{result['seconds']:6.1f} s  {result['verdict']}", flush=True)
                written = {"machine": machine(), "limits": LIMITS, "rows": rows}
                write_results(arguments.out, written, quiet=True)


def version_of(package: str) -> str:
    """Of a package, or of its build with another ending: onnxruntime-gpu."""
    for name in (package, f"{package}-gpu", f"{package}-openvino"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["write", "run"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, help="forward graphs, as same_graphs.py keeps them")
    parser.add_argument("--runtimes", nargs="*", default=list(RUNTIMES), choices=list(RUNTIMES))
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--size", type=int, help="of the images, in place of 96 or 224")
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=FORMS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "portability.json")
    arguments = parser.parse_args()
    {"write": write, "run": run}[arguments.action](arguments)


if __name__ == "__main__":
    main()
