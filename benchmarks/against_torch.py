"""The two-pass graph in onnxruntime against the same two passes in PyTorch, on one CPU thread.

    python benchmarks/against_torch.py [--models resnet18 resnet50] [--batch 4]

All forms run on the folded network with the same images, interleaved in one process; median CPU time.
PyTorch runs eagerly in both memory formats and under torch.compile; the faster of each kind counts.
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
import torch
import torchvision
from cpu_cost import interleaved, session
from measuring import machine, write_results
from torch import Tensor, nn

from sad_deploy.fold import fold_batchnorm
from sad_deploy.to_onnx import to_onnx
from sad_export import two_pass

ETA = 0.05
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
    jobs: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for target in ("portable", "cpu"):
            path = Path(folder) / f"{target}.onnx"
            onnx.save(two_pass(to_onnx(model, (3, 224, 224)), eta=ETA, target=target), str(path))
            run = session(path).run
            jobs[f"onnxruntime, {target}"] = functools.partial(run, ["logits"], {"image": x.numpy()})
    last = model.to(memory_format=torch.channels_last)
    x_last = x.to(memory_format=torch.channels_last)
    jobs["torch eager, channels last"] = functools.partial(defended, last, x_last)
    jobs["torch.compile, channels last"] = functools.partial(torch.compile(defended), last, x_last)
    plain = fold_batchnorm(last).to(memory_format=torch.contiguous_format).requires_grad_(False)
    jobs["torch eager"] = functools.partial(defended, plain, x)
    jobs["torch.compile"] = functools.partial(torch.compile(defended), plain, x)
    want = jobs["torch eager"]().numpy()
    for form, job in jobs.items():
        got = job()[0] if form.startswith("onnxruntime") else job().numpy()
        assert (got.argmax(1) == want.argmax(1)).all(), form
    return {"model": name, "batch": batch, "cpu_seconds": interleaved(jobs, rounds)}


def fastest(seconds: dict[str, float], kind: str) -> float:
    """Of the forms of one kind."""
    return min(value for form, value in seconds.items() if form.startswith(kind))


def main() -> None:
    """Print and write all comparisons."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.models:
        row = measure(name, arguments.batch, arguments.rounds)
        seconds = row["cpu_seconds"]
        best = fastest(seconds, "onnxruntime")
        row["speedup"] = {kind: fastest(seconds, kind) / best for kind in ("torch.compile", "torch eager")}
        rows.append(row)
        print(name)
        for form, value in seconds.items():
            print(f"  {form:<32}{value:7.3f} s")
        for kind, speedup in row["speedup"].items():
            print(f"  {speedup:.2f} × faster than {kind}; target {TARGETS.get(name, {}).get(kind, '–')}")
    write_results(
        Path(__file__).parent / "results" / "against_torch.json",
        {"machine": machine(), "targets": TARGETS, "rows": rows},
    )


if __name__ == "__main__":
    main()
