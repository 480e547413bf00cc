"""The two passes on every CPU engine: onnxruntime, OpenVINO and PyTorch, on one thread.

    python benchmarks/against_torch.py [--models resnet18 resnet50] [--batch 4]

All forms run on the folded network with the same images, interleaved in one process; median CPU time, also as
multiples of the undefended float32 pass in onnxruntime. PyTorch runs eagerly and under torch.compile; in
float32 in both memory formats, in bf16 (autocast) channels last; the faster of each kind counts. OpenVINO's
graphs are compiled for the batch, as the backend does; it runs in bf16 where the processor has that.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import torch
import torchvision
from cpu_cost import interleaved, session
from measuring import machine, write_results
from torch import Tensor, nn

from sad_deploy.fold import fold_batchnorm
from sad_deploy.to_onnx import to_onnx
from sad_export import two_pass

ETA = 0.05
CORE = openvino.Core()
MODELS = ["resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0"]
TARGETS = {
    "resnet18": {"torch.compile": 1.3, "torch eager": 1.5},
    "resnet50": {"torch.compile": 1.7, "torch eager": 1.9},
}


def defended(model: nn.Module, x: Tensor) -> Tensor:
    """Φ(x + ηS(x)), S by torch.func, which torch.compile traces whole."""
    saliency = torch.func.grad(lambda at: model(at).max(1).values.sum())(x)
    with torch.no_grad():
        return model(x + ETA * saliency)  # type: ignore[no-any-return]


def measure(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """CPU seconds of every form."""
    torch.manual_seed(0)
    model = fold_batchnorm(torchvision.models.get_model(name, weights=None).eval()).requires_grad_(False)
    x = torch.from_numpy(np.random.default_rng(0).random((batch, 3, 224, 224), dtype=np.float32))
    jobs = _graph_jobs(model, x) | _torch_jobs(model, x)
    want = jobs["torch eager"]().numpy()
    for form, job in jobs.items():
        if not form.startswith("undefended") and "bf16" not in form:
            got = job()
            got = got.numpy() if isinstance(got, Tensor) else got[0]
            assert (got.argmax(1) == want.argmax(1)).all(), form
    return {"model": name, "batch": batch, "cpu_seconds": interleaved(jobs, rounds)}


def _graph_jobs(model: nn.Module, x: Tensor) -> dict[str, Callable[[], Any]]:
    jobs: dict[str, Callable[[], Any]] = {}
    forward = to_onnx(model, (3, 224, 224))
    graphs = {
        "undefended, {}": (forward, "fp32"),
        "{}": (two_pass(forward, eta=ETA), "fp32"),
        "{}, --target cpu": (two_pass(forward, eta=ETA, target="cpu"), "fp32"),
        "{}, bf16": (two_pass(forward, eta=ETA, conv_gradient="conv"), "bf16"),
        "undefended, {}, bf16": (forward, "bf16"),
    }
    with tempfile.TemporaryDirectory() as folder:
        for label, (graph, precision) in graphs.items():
            path = Path(folder) / "graph.onnx"
            onnx.save(graph, str(path))
            if precision == "fp32":
                loaded = session(path)
                feed = {loaded.get_inputs()[0].name: x.numpy()}
                jobs[label.format("onnxruntime")] = functools.partial(loaded.run, None, feed)
            if precision == "fp32" or "BF16" in CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
                jobs[label.format("openvino")] = _openvino_job(path, x, precision)
    return jobs


def _openvino_job(path: Path, x: Tensor, precision: str) -> Callable[[], Any]:
    model = CORE.read_model(path)
    model.reshape(list(x.shape))
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = CORE.compile_model(model, "CPU", settings).create_infer_request()
    image = x.numpy()

    def job() -> list[Any]:
        request.infer({0: image}, share_inputs=True)
        return [request.get_output_tensor(0).data]

    return job


def _torch_jobs(model: nn.Module, x: Tensor) -> dict[str, Callable[[], Any]]:
    last = model.to(memory_format=torch.channels_last)
    x_last = x.to(memory_format=torch.channels_last)
    plain = fold_batchnorm(last).to(memory_format=torch.contiguous_format).requires_grad_(False)

    def in_bf16(run: Callable[..., Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return run(last, x_last)

    return {
        "torch eager, channels last": functools.partial(defended, last, x_last),
        "torch.compile, channels last": functools.partial(torch.compile(defended), last, x_last),
        "torch eager": functools.partial(defended, plain, x),
        "torch.compile": functools.partial(torch.compile(defended), plain, x),
        "torch eager, bf16": functools.partial(in_bf16, defended),
        "torch.compile, bf16": functools.partial(in_bf16, torch.compile(defended)),
    }


def fastest(seconds: dict[str, float], kind: str) -> float:
    """Of the float32 forms of one kind."""
    return min(v for form, v in seconds.items() if form.startswith(kind) and "bf16" not in form)


def main() -> None:
    """Print and write all comparisons."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.models:
        row = measure(name, arguments.batch, arguments.rounds)
        seconds = row["cpu_seconds"]
        unit = seconds["undefended, onnxruntime"]
        row["ratio_to_undefended"] = {form: round(value / unit, 2) for form, value in seconds.items()}
        best = min(fastest(seconds, "onnxruntime"), fastest(seconds, "openvino"))
        row["speedup"] = {kind: fastest(seconds, kind) / best for kind in ("torch.compile", "torch eager")}
        rows.append(row)
        print(name)
        for form, value in seconds.items():
            print(f"  {form:<32}{value:7.3f} s{value / unit:7.2f} ×")
        for kind, speedup in row["speedup"].items():
            print(
                f"  {speedup:.2f} × faster than {kind}; target {TARGETS.get(name, {}).get(kind, '–')}",
                flush=True,
            )
    write_results(
        Path(__file__).parent / "results" / "against_torch.json",
        {"machine": machine(), "targets": TARGETS, "rows": rows},
    )


if __name__ == "__main__":
    main()
