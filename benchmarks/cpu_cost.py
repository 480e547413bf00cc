"""What the defence costs on the CPU: two passes against one, in onnxruntime; sizes of graph and engine.

    python benchmarks/cpu_cost.py [--models resnet18 resnet50] [--batches 4 8]

Process CPU time on one thread, forward and two-pass graphs interleaved in one process; the ratio is of the
medians. Weights are random: the cost does not depend on them. Where the time goes is onnxruntime's own
profile, for each node the shortest of several runs.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torchvision
from measuring import machine, write_results

from sad_deploy.fold import fold_batchnorm
from sad_deploy.to_onnx import to_onnx
from sad_export import two_pass
from sad_export.tensorrt import build_engine

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Name → convolution gradient and target of the two-pass graph.
FORMS = {"portable": ("auto", "portable"), "cpu": ("auto", "cpu"), "conv": ("conv", "portable")}
MODELS = {
    "resnet18": 3.5,
    "resnet50": 3.5,
    "vgg16_bn": 3.5,
    "densenet121": 4.0,
    "mobilenet_v2": 4.0,
    "efficientnet_b0": 4.0,
    "regnet_y_400mf": 4.0,
}
"""What is measured by default, with the cost ratio that is aimed at."""

TARGETS = {"cost_ratio": MODELS, "onnx_size_ratio": 1.02, "engine_size_ratio": 1.08}
PROFILED_RUNS = 5


def session(path: Path, profile: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def interleaved(jobs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median process CPU seconds of each job, the jobs taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(rounds):
        for name, job in jobs.items():
            started = time.process_time()
            job()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def profile(path: Path, outputs: list[str] | None, images: Any, folder: Path) -> dict[tuple[str, str], float]:
    """Milliseconds of every node, by (name, operator), in the shortest of several runs."""
    loaded = session(path, profile=folder / "profile")
    for _ in range(PROFILED_RUNS):
        loaded.run(outputs, {loaded.get_inputs()[0].name: images})
    shortest: dict[tuple[str, str], float] = {}
    for event in json.loads(Path(loaded.end_profiling()).read_text()):
        name = event["name"].removesuffix("_kernel_time")
        if event.get("cat") == "Node" and name != event["name"]:
            key = (name, event["args"]["op_name"])
            shortest[key] = min(shortest.get(key, float("inf")), event["dur"] / 1000)
    return shortest


def where_the_time_goes(
    two_pass_path: Path, forward_path: Path, images: Any, folder: Path
) -> dict[str, float]:
    """Milliseconds of parts of the two-pass graph, in units of the forward graph's."""
    masks = {
        node.name
        for node in onnx.load(str(two_pass_path), load_external_data=False).graph.node
        if node.op_type == "Conv" and _is_pointwise_and_depthwise(node)
    }
    parts: collections.Counter[str] = collections.Counter()
    for (name, operator), milliseconds in profile(two_pass_path, ["logits"], images, folder).items():
        if operator in ("ReorderInput", "ReorderOutput"):
            part = "reorders between layouts"
        elif "backward/" not in name:
            part = "two forward passes"
        elif "Conv" in operator and name.removesuffix("_nchwc") not in masks:
            part = "backward convolutions"
        else:
            part = "backward, all else"
        parts[part] += milliseconds
    unit = sum(profile(forward_path, None, images, folder).values())
    return {part: milliseconds / unit for part, milliseconds in parts.most_common()}


def _is_pointwise_and_depthwise(node: onnx.NodeProto) -> bool:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return attributes.get("group", 1) > 1 and list(attributes.get("kernel_shape", ())) == [1, 1]


def measure(
    name: str, batches: list[int], rounds: int, forms: list[str], engines: bool, folder: Path
) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    forward = to_onnx(fold_batchnorm(model), (3, 224, 224))
    forward_path = folder / f"{name}.onnx"
    onnx.save(forward, str(forward_path))
    paths = {"forward": forward_path}
    build_seconds = {}
    for form in forms:
        conv_gradient, target = FORMS[form]
        started = time.process_time()
        graph = two_pass(forward, eta=0.05, mean=MEAN, std=STD, conv_gradient=conv_gradient, target=target)
        build_seconds[form] = time.process_time() - started
        paths[form] = folder / f"{name}.{form}.onnx"
        onnx.save(graph, str(paths[form]))
    forms_figures: dict[str, dict[str, Any]] = {
        form: {
            "onnx_size_ratio": paths[form].stat().st_size / forward_path.stat().st_size,
            "two_pass_cpu_seconds": build_seconds[form],
        }
        for form in forms
    }
    if engines:
        sizes = {
            key: build_engine(path, folder / f"{name}.{key}.plan", flavor="rtx")
            for key, path in paths.items()
        }
        for form, figures in forms_figures.items():
            figures["engine_size_ratio"] = sizes[form].bytes / sizes["forward"].bytes
            figures["engine_build_seconds"] = sizes[form].seconds
    return [
        {"model": name, "batch": batch} | _cost(paths, forms_figures, batch, rounds, folder)
        for batch in batches
    ]


def _cost(
    paths: dict[str, Path], forms: dict[str, dict[str, Any]], batch: int, rounds: int, folder: Path
) -> dict[str, Any]:
    images = np.random.default_rng(0).random((batch, 3, 224, 224), dtype=np.float32)
    jobs: dict[str, Callable[[], Any]] = {}
    for key, path in paths.items():
        loaded = session(path)
        outputs = ["logits"] if key != "forward" else None
        jobs[key] = functools.partial(loaded.run, outputs, {loaded.get_inputs()[0].name: images})
    seconds = interleaved(jobs, rounds)
    return {
        "forward_cpu_seconds": seconds["forward"],
        "forms": {
            form: {
                "cpu_seconds": seconds[form],
                "cost_ratio": seconds[form] / seconds["forward"],
                "where": where_the_time_goes(paths[form], paths["forward"], images, folder),
            }
            | figures
            for form, figures in forms.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=["portable", "cpu"])
    parser.add_argument("--no-engines", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu_cost.json")
    arguments = parser.parse_args()
    rows = []
    print(
        f"{'model':<17}{'form':<10}{'batch':>5}{'forward s':>11}{'ratio':>7}{'onnx':>8}{'engine':>8}  where"
    )
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            measured = measure(
                name,
                arguments.batches,
                arguments.rounds,
                arguments.forms,
                not arguments.no_engines,
                Path(folder),
            )
        rows += measured
        for row in measured:
            for form, figures in row["forms"].items():
                engine = f"{figures['engine_size_ratio']:.3f}" if "engine_size_ratio" in figures else "–"
                where = ", ".join(f"{part} {share:.2f}" for part, share in figures["where"].items())
                print(
                    f"{name:<17}{form:<10}{row['batch']:>5}{row['forward_cpu_seconds']:>11.3f}"
                    f"{figures['cost_ratio']:>7.2f}{figures['onnx_size_ratio']:>8.4f}{engine:>8}  {where}",
                    flush=True,
                )
    write_results(arguments.out, {"machine": machine(), "targets": TARGETS, "rows": rows})


if __name__ == "__main__":
    main()
