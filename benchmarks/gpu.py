"""The defence on a GPU: two passes against one, by runtime and precision, against torch and the GPU's limit.

    python benchmarks/gpu.py [--models resnet18 resnet50] [--batches 1 8 64 256] [--out FILE] [--quick]

Needs an NVIDIA GPU, torch, onnxruntime and onnx, and nothing from a network; torchvision for the networks, or
their ONNX files (`--forward resnet18=path.onnx`, then without torch's own forms). Every runtime and precision
runs in a process of its own. What does not run here is listed with its reason and ends nothing; the
figures are written after each.

Weights are random: the cost does not depend on them. Times are the median of synchronised calls after a
warm-up, single and two passes taking turns, images and results on the GPU; "end to end" is the two passes
with images and logits in ordinary memory. Arithmetic is that of the forward graph's Conv, ConvTranspose, Gemm
and MatMul, 2 for each multiply-add; two passes are three times that (forward, input gradient, forward), in
whatever way a runtime computes them. It is compared with the fastest matrix product of the same precision.
`--device cpu --quick` shows in a minute that the script itself works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gpu_contenders import CONTENDERS, ETA, MEAN, PRECISIONS, STD, forward_module, reason_of, work
from measuring import machine, write_results

from sad_runtime.devices import cuda_devices

TARGETS = {
    "latency_ratio_at_batch_64": 3.3,
    "two_passes_against_torch_compile": "less time, at the same precision",
}
PASSES = 3
"""Forward passes that two passes and the gradient between them amount to."""


def multiply_adds(path: Path) -> int:
    """Of the matrix products and convolutions of a forward graph, for one image."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    graph = model.graph
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    shapes = {
        value.name: [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]  # N is 1
        for value in [*graph.input, *graph.output, *graph.value_info]
    }
    total = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        # Each value of the larger side meets each weight of its filter, row or column once.
        value = shapes[node.input[0] if node.op_type == "ConvTranspose" else node.output[0]]
        second = weights.get(node.input[1]) or shapes[node.input[1]]
        if node.op_type in ("Conv", "ConvTranspose"):
            each = _product(second[1:])
        elif node.op_type == "Gemm":
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            each = second[1] if transposed else second[0]
        else:
            each = second[-2]
        total += _product(value) * each
    return total


def _product(sides: list[int]) -> int:
    result = 1
    for side in sides:
        result *= side
    return result


def write_graphs(name: str, forward: Path | None, size: int, folder: Path) -> tuple[dict[str, Any], Path]:
    """Write the single and the two passes in each precision.

    Returns:
        By precision: the files, or why there are none; and the forward graph.
    """
    import numpy as np
    import onnx
    from variants import two_pass_in

    from sad_export.first_pass import first_pass

    if forward is None:
        from sad_deploy.fold import fold_batchnorm
        from sad_deploy.to_onnx import to_onnx

        forward = folder / f"{name}.forward.onnx"
        onnx.save(to_onnx(fold_batchnorm(forward_module(name)), (3, size, size)), str(forward))
    images = np.random.default_rng(0).random((2, 3, size, size), dtype=np.float32)
    graphs: dict[str, Any] = {}
    for precision in ("fp32", "fp16", "bf16"):
        try:
            graph = two_pass_in(precision, onnx.load(str(forward)), images, eta=ETA, mean=MEAN, std=STD)
            paths = {passes: folder / f"{name}.{precision}.{passes}.onnx" for passes in ("single", "two")}
            onnx.save(graph, str(paths["two"]))
            onnx.save(first_pass(graph), str(paths["single"]))
            graphs[precision] = {passes: str(path) for passes, path in paths.items()}
        except Exception as error:
            graphs[precision] = {"failed": reason_of(error)}
    graphs["tf32"] = graphs["fp32"]
    return graphs, forward


def in_own_process(job: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Run :func:`gpu_contenders.work` elsewhere; what goes wrong there, a crash too, is a reason."""
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {timeout:.0f} s"}
    lines = ended.stdout.splitlines()
    if ended.returncode == 0 and lines:
        found: dict[str, Any] = json.loads(lines[-1])
        return found
    said = [line for line in ended.stderr.splitlines() if line.strip()]
    return {"failed": f"ended with {ended.returncode}: {said[-1][:300] if said else 'without a word'}"}


def with_rates(row: dict[str, Any], macs: int | None, ceilings: dict[str, float]) -> dict[str, Any]:
    """A row with what follows from its times."""
    if "failed" in row:
        return row
    two, single = row["two_passes_ms"], row["single_pass_ms"]
    row |= {"latency_ratio": two / single, "images_per_second": 1e3 * row["batch"] / two}
    if macs is not None:
        once = 2 * macs * row["batch"] / 1e9  # per millisecond it is TFLOP/s
        row |= {"tflops": PASSES * once / two, "single_pass_tflops": once / single}
        if row["precision"] in ceilings:
            row["share_of_matrix_product"] = row["tflops"] / ceilings[row["precision"]]
    return row


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By network, precision and batch: the best of ours, its ratio, and torch.compile's time over its."""
    found = []
    good = [row for row in rows if "failed" not in row]
    for key in dict.fromkeys((row["model"], row["precision"], row["batch"]) for row in good):
        same = [row for row in good if (row["model"], row["precision"], row["batch"]) == key]
        ours = [row for row in same if not row["contender"].startswith("torch")]
        compiled = [row for row in same if row["contender"].startswith("torch.compile")]
        if ours:
            best = min(ours, key=lambda row: row["two_passes_ms"])
            theirs = min((row["two_passes_ms"] for row in compiled), default=None)
            found.append(
                {
                    **dict(zip(("model", "precision", "batch"), key, strict=True)),
                    "best": best["contender"],
                    "latency_ratio": best["latency_ratio"],
                    "speedup_over_torch_compile": theirs and theirs / best["two_passes_ms"],
                }
            )
    return found


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    head = f"{row['model']:<10}{row['batch']:>5}  {row['contender']:<32}{row['precision']:<6}"
    if "failed" in row:
        print(f"{head}does not run: {row['failed']}", flush=True)
        return
    tflops, share = row.get("tflops"), row.get("share_of_matrix_product")
    print(
        f"{head}{row['single_pass_ms']:>9.3f}{row['two_passes_ms']:>9.3f}{row['latency_ratio']:>7.2f}"
        f"{row['end_to_end_ms']:>11.3f}{f'{tflops:.2f}' if tflops else '–':>9}"
        f"{f'{share:.0%}' if share else '–':>7}",
        flush=True,
    )


def describe_gpu() -> dict[str, Any]:
    """The first GPU and its driver, as far as they tell."""
    found = cuda_devices()
    if found.problem:
        return {"problem": found.problem}
    device = found.devices[0]
    described: dict[str, Any] = {
        "name": device.name,
        "compute_capability": ".".join(map(str, device.compute_capability)),
        "memory_bytes": device.memory,
    }
    query = "driver_version,clocks.max.sm,power.limit"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return described
    return described | dict(zip(query.split(","), answer.strip().split(", "), strict=False))


def main() -> None:
    """Measure, print and write everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", help="default: resnet18 resnet50, or those of --forward")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64, 256])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument(
        "--forward", nargs="+", default=[], metavar="NAME=ONNX", help="in torchvision's place"
    )
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--rounds", type=int, default=50, help="at most, of each measurement")
    parser.add_argument("--seconds", type=float, default=5, help="at most, for each measurement")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one runtime and precision")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="small images and batches, nothing compiled")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(work(json.loads(arguments.job))))
        return
    forwards = dict(entry.split("=", 1) for entry in arguments.forward)
    models = arguments.models or list(forwards) or ["resnet18", "resnet50"]
    if arguments.device == "cpu":
        arguments.precisions = ["fp32"]
    if arguments.quick:
        arguments.batches, arguments.size, arguments.rounds, arguments.seconds = [1, 2], 64, 3, 1
        arguments.contenders = [name for name in arguments.contenders if "compile" not in name]
        models = models[:1]
    results: dict[str, Any] = {
        "machine": machine() | {"gpu": describe_gpu()},
        "device": arguments.device,
        "size": arguments.size,
        "targets": TARGETS,
    }
    common = {name: getattr(arguments, name) for name in ("device", "size", "rounds", "seconds", "batches")}
    ceilings: dict[str, float] = {}
    results["matrix_product_tflops"] = ceilings
    failed = results["matrix_product_failed"] = {}
    for precision in arguments.precisions:
        job = common | {"contender": "matrix product", "precision": precision, "quick": arguments.quick}
        found = in_own_process(job, arguments.timeout)
        if "failed" in found:
            failed[precision] = found["failed"]
        else:
            ceilings[precision] = found["tflops"]
    print("matrix product, TFLOP/s:", ", ".join(f"{name} {value:.2f}" for name, value in ceilings.items()))
    for precision, reason in failed.items():
        print(f"matrix product {precision} does not run: {reason}")
    print(
        f"{'network':<10}{'batch':>5}  {'runtime':<32}{'':<6}{'one, ms':>9}{'two, ms':>9}{'ratio':>7}"
        f"{'end to end':>11}{'TFLOP/s':>9}{'share':>7}"
    )
    rows: list[dict[str, Any]] = []
    results["multiply_adds_per_image"] = {}
    for name in models:
        with tempfile.TemporaryDirectory() as folder:
            given = Path(forwards[name]) if name in forwards else None
            graphs: dict[str, Any]
            macs: int | None = None
            try:
                graphs, forward = write_graphs(name, given, arguments.size, Path(folder))
                macs = multiply_adds(forward)
            except Exception as error:  # torch's own forms need no graph
                graphs = {precision: {"failed": reason_of(error)} for precision in PRECISIONS}
            results["multiply_adds_per_image"][name] = macs
            for contender in arguments.contenders:
                for precision in arguments.precisions:
                    job = common | {"contender": contender, "precision": precision, "model": name}
                    job |= {"graphs": graphs[precision], "folder": folder, "from_onnx": given is not None}
                    found = in_own_process(job, arguments.timeout)
                    head = {"model": name, "contender": contender, "precision": precision}
                    for row in found.get("batches", [found | {"batch": "all"}]):
                        rows.append(with_rates(head | row, macs, ceilings))
                        show(rows[-1])
                    results |= {"rows": rows, "verdicts": verdicts(rows)}
                    write_results(arguments.out, results, quiet=True)
    for verdict in results.get("verdicts", []):
        speedup = verdict["speedup_over_torch_compile"]
        print(
            f"{verdict['model']} {verdict['precision']} batch {verdict['batch']}: {verdict['best']}, "
            f"{verdict['latency_ratio']:.2f} × a single pass"
            + (f", {speedup:.2f} × faster than torch.compile" if speedup else "")
        )
    write_results(arguments.out, results)


if __name__ == "__main__":
    main()
