"""What gpu.py compares: every way to run one and two passes, opened, checked and timed in one process."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sad_runtime.backends.onnxruntime import OnnxRuntimeBackend, Provider
from sad_runtime.tensorrt import Flavor

ETA = 0.05
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
AGREEMENT = 0.98
"""Least cosine between a contender's logits, less their mean, and those of the CPU in float32."""
CHECKED = 4
"""Images whose logits are checked."""

Job = dict[str, Any]
Images = Any  # numpy (N, 3, H, W) float32


@dataclasses.dataclass(frozen=True)
class Passes:
    """One batch size, ready to be timed.

    Attributes:
        single: One pass; returns when the GPU is done.
        two: Two passes, likewise.
        end_to_end: Images in ordinary memory → logits of two passes in ordinary memory.
    """

    single: Callable[[], Any]
    two: Callable[[], Any]
    end_to_end: Callable[[Images], Any]


Opener = Callable[[Images], Passes]
"""Prepares a batch."""


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def forward_module(name: str) -> Any:
    """A torchvision network with random weights, the same in every process."""
    import torch
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval()


# onnxruntime and TensorRT: the runtime that this repository ships.


@contextlib.contextmanager
def onnxruntime_contender(job: Job, *, cuda_graphs: bool) -> Iterator[Opener]:
    if job["device"] == "cpu":
        if cuda_graphs:
            raise RuntimeError("the CPU has no CUDA graphs")
        provider = Provider.CPU
    else:
        provider = Provider.CUDA
    options = {"tf32": job["precision"] == "tf32", "cuda_graphs": cuda_graphs}
    with (
        OnnxRuntimeBackend(Path(job["graphs"]["single"]), provider, **options) as single,
        OnnxRuntimeBackend(Path(job["graphs"]["two"]), provider, **options) as two,
    ):

        def passes(images: Images) -> Passes:
            if provider is Provider.CPU:  # where no copies are made
                return Passes(
                    lambda: single.run(images, ["plain_logits"]),
                    lambda: two.run(images, ["logits"]),
                    lambda batch: two.run(batch, ["logits"])["logits"],
                )
            single.run(images, ["plain_logits"])  # puts the images there
            two.run(images, ["logits"])
            return Passes(
                lambda: single.compute(len(images), ["plain_logits"]),
                lambda: two.compute(len(images), ["logits"]),
                lambda batch: two.run(batch, ["logits"])["logits"],
            )

        yield passes


@contextlib.contextmanager
def tensorrt_contender(job: Job, flavor: Flavor) -> Iterator[Opener]:
    from sad_export.tensorrt import BuildOptions, build_engine
    from sad_runtime.backends.tensorrt import TensorRTBackend

    tf32 = job["precision"] == "tf32"
    largest = max(job["batches"])
    profile = (min(job["batches"]), min(64, largest), largest)
    plans = {}
    for passes_, graph in job["graphs"].items():
        plans[passes_] = Path(job["folder"]) / f"{Path(graph).stem}.{job['precision']}.{flavor}.plan"
        build_engine(
            graph, plans[passes_], flavor=flavor.value, batch=profile, options=BuildOptions(tf32=tf32)
        )

    def refuse(notice: str) -> None:
        raise RuntimeError(notice)  # smaller batches are not what is measured

    with (
        TensorRTBackend(plans["single"], flavor, tf32=tf32, notice=refuse) as single,
        TensorRTBackend(plans["two"], flavor, tf32=tf32, notice=refuse) as two,
    ):

        def passes(images: Images) -> Passes:
            single.run(images, ["plain_logits"])
            two.run(images, ["logits"])
            return Passes(
                lambda: single.compute(len(images)),
                lambda: two.compute(len(images)),
                lambda batch: two.run(batch, ["logits"])["logits"],
            )

        yield passes


# torch: the same two passes, by torch.func, which torch.compile traces whole.


@contextlib.contextmanager
def torch_contender(job: Job, *, compiled: bool, channels_last: bool) -> Iterator[Opener]:
    import torch

    from sad_deploy.fold import fold_batchnorm

    if job["from_onnx"]:
        raise RuntimeError("the network was given as an ONNX file")
    device, precision = job["device"], job["precision"]
    set_tf32(precision == "tf32")
    dtype = torch_type(precision)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = fold_batchnorm(forward_module(job["model"])).requires_grad_(False)
    model = model.to(device=device, dtype=dtype).to(memory_format=layout)
    mean, std = (torch.tensor(v, device=device, dtype=dtype).reshape(1, 3, 1, 1) for v in (MEAN, STD))

    def single(image: Any) -> Any:
        with torch.no_grad():
            return model((image - mean) / std)

    def two(image: Any) -> Any:
        x = (image - mean) / std
        saliency = torch.func.grad(lambda at: model(at).max(1).values.sum())(x)
        with torch.no_grad():
            return model(x + ETA * saliency)

    if compiled:
        mode = "reduce-overhead" if device == "cuda" else "default"  # with CUDA graphs
        single, two = torch.compile(single, mode=mode), torch.compile(two, mode=mode)

    def synchronised(run: Callable[[], Any]) -> Any:
        result = run()
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    def placed(images: Any) -> Any:
        return images.to(device=device, dtype=dtype, non_blocking=True).contiguous(memory_format=layout)

    def passes(images: Images) -> Passes:
        host = torch.from_numpy(images)
        if device == "cuda":
            host = host.pin_memory()
        resident = placed(host)
        return Passes(
            lambda: synchronised(lambda: single(resident)),
            lambda: synchronised(lambda: two(resident)),
            lambda batch: (
                two(placed(host if batch is images else torch.from_numpy(batch))).float().cpu().numpy()
            ),
        )

    yield passes


def set_tf32(wanted: bool) -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = wanted
    torch.backends.cudnn.allow_tf32 = wanted
    torch.backends.cudnn.benchmark = True


def torch_type(precision: str) -> Any:
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)


CONTENDERS: dict[str, Callable[[Job], contextlib.AbstractContextManager[Opener]]] = {
    "onnxruntime": lambda job: onnxruntime_contender(job, cuda_graphs=False),
    "onnxruntime, CUDA graphs": lambda job: onnxruntime_contender(job, cuda_graphs=True),
    **{flavor.module: lambda job, flavor=flavor: tensorrt_contender(job, flavor) for flavor in Flavor},
    "torch eager": lambda job: torch_contender(job, compiled=False, channels_last=False),
    "torch eager, channels last": lambda job: torch_contender(job, compiled=False, channels_last=True),
    "torch.compile": lambda job: torch_contender(job, compiled=True, channels_last=False),
    "torch.compile, channels last": lambda job: torch_contender(job, compiled=True, channels_last=True),
}


def work(job: Job) -> dict[str, Any]:
    """Measure one contender in one precision.

    Returns:
        ``batches``, one entry for each with its times or ``failed``; or ``failed`` for all; for the matrix
        product ``tflops``.
    """
    try:
        if job["contender"] == "matrix product":
            return {"tflops": matrix_product(job)}
        if "failed" in job["graphs"] and not job["contender"].startswith("torch"):
            return {"failed": job["graphs"]["failed"]}
        with CONTENDERS[job["contender"]](job) as opener:
            return {"batches": [_measured(job, opener, batch) for batch in job["batches"]]}
    except Exception as error:
        return {"failed": reason_of(error)}


def _measured(job: Job, opener: Opener, batch: int) -> dict[str, Any]:
    try:
        images = np.random.default_rng(0).random((batch, 3, job["size"], job["size"]), dtype=np.float32)
        passes = opener(images)
        agreement = _agreement(job, passes.end_to_end(images), images)
        if agreement is not None and not agreement >= AGREEMENT:
            return {"batch": batch, "failed": f"wrong logits: cosine {agreement:.4f} with the CPU's"}
        times = interleaved(
            {
                "single_pass_ms": passes.single,
                "two_passes_ms": passes.two,
                "end_to_end_ms": lambda: passes.end_to_end(images),
            },
            job["rounds"],
            job["seconds"],
        )
    except Exception as error:
        return {"batch": batch, "failed": reason_of(error)}
    return {"batch": batch, **times, "cosine_of_logits": agreement}


def _agreement(job: Job, logits: Any, images: Images) -> float | None:
    """Smallest cosine with the logits of onnxruntime's CPU; ``None`` where there is no float32 graph."""
    if "two" not in job["graphs"]:
        return None
    graph = Path(job["graphs"]["two"])
    reference = graph.with_name(graph.name.replace(f".{job['precision']}.", ".fp32."))
    with OnnxRuntimeBackend(reference, Provider.CPU) as cpu:
        wanted = cpu.run(images[:CHECKED], ["logits"])["logits"]
    a, b = (values - values.mean(1, keepdims=True) for values in (logits[:CHECKED], wanted))
    return float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())


def interleaved(jobs: dict[str, Callable[[], Any]], rounds: int, seconds: float) -> dict[str, float]:
    """Median wall milliseconds of each job, the jobs taking turns after a warm-up."""
    for _ in range(4):  # compiles, records, records again
        for job in jobs.values():
            job()
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    end = time.perf_counter() + seconds * len(jobs)
    for done in range(rounds):
        if done >= 3 and time.perf_counter() > end:
            break
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            taken[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in taken.items()}


def matrix_product(job: Job) -> float:
    """TFLOP/s of the largest product of square matrices that is reached, over a few sizes."""
    import torch

    device, precision = job["device"], job["precision"]
    set_tf32(precision == "tf32")
    best = 0.0
    for side in (256,) if job["quick"] else (4096, 8192, 16384):
        a = torch.randn(side, side, device=device, dtype=torch_type(precision))

        def product(a: Any = a) -> None:
            torch.mm(a, a)
            if device == "cuda":
                torch.cuda.synchronize()

        milliseconds = interleaved({"product": product}, job["rounds"], job["seconds"])["product"]
        best = max(best, 2 * side**3 / (milliseconds / 1e3) / 1e12)
    return best
