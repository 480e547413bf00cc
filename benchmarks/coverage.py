"""Every torchvision classifier with BatchNorm: does its two-pass graph build, and how exact is its saliency?

    python benchmarks/coverage.py [--models resnet18 maxvit_t] [--no-engines]

With --models, the results of the others stay as they are in the file.

Weights are random and BatchNorm statistics randomised. The saliency of the two-pass graph (onnxruntime,
float32) is compared with float64 autograd of the unfolded model on four images, and so is PyTorch's own
float32 autograd of the folded one: its error comes from the network alone. The graph is exported with a
dynamic batch and checked by onnx.checker in full. Images are small, so that a model takes seconds; one of
each family also runs at the size it was made for. Each model runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import machine, write_results

IMAGES = 4
SMALL = {"inception_v3": 96, "maxvit_t": 224, "vgg": 64}
"""Image size where 64 is too small for the network, by prefix."""

FULL_SIZE = {
    "resnet18": 224,
    "resnext50_32x4d": 224,
    "wide_resnet50_2": 224,
    "vgg11_bn": 224,
    "densenet121": 224,
    "googlenet": 224,
    "inception_v3": 299,
    "mobilenet_v2": 224,
    "mobilenet_v3_large": 224,
    "mnasnet1_0": 224,
    "efficientnet_b0": 224,
    "efficientnet_v2_s": 384,
    "regnet_x_800mf": 224,
    "regnet_y_800mf": 224,
    "shufflenet_v2_x1_0": 224,
    "maxvit_t": 224,
}
LIMITS = {"cosine": 0.9999, "relative_l2": 1e-3}
ROOT = Path(__file__).parent.parent


def classifiers() -> list[str]:
    """The torchvision classifiers with BatchNorm, by name."""
    import torchvision

    families = (
        "resnet",
        "resnext",
        "wide_resnet",
        "densenet",
        "googlenet",
        "inception",
        "mobilenet",
        "mnasnet",
    )
    families += ("efficientnet", "regnet", "shufflenet", "maxvit")
    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if name.startswith(families) or name.endswith("_bn")]


def measure(name: str, size: int, *, engine: bool) -> dict[str, Any]:
    """Export, differentiate, check, compare and build one model."""
    import numpy as np
    import onnx
    import onnxruntime
    import torch
    import torchvision

    sys.path.insert(0, str(ROOT / "tests" / "export"))
    from models import forward_onnx, randomised

    from sad_deploy.fold import fold_batchnorm
    from sad_export import two_pass
    from sad_export.tensorrt import build_engine
    from sad_runtime.errors import UserError

    torch.set_num_threads(1)
    torch.manual_seed(0)
    auxiliary = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = randomised(torchvision.models.get_model(name, weights=None, **auxiliary))
    result: dict[str, Any] = {"model": name, "size": size, "exported": False}
    started = time.process_time()
    forward = forward_onnx(model, (3, size, size))
    result |= {"exported": True, "forward_export_seconds": time.process_time() - started}
    started = time.process_time()
    try:
        graph = two_pass(forward, eta=0.05)
    except UserError as error:
        return result | {"error": str(error)}
    result["two_pass_seconds"] = time.process_time() - started
    result["nodes"] = {"forward": len(forward.graph.node), "two_pass": len(graph.graph.node)}
    del forward
    weights = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)

    images = np.random.default_rng(0).normal(size=(IMAGES, 3, size, size)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        # A protobuf message ends at 2 GiB.
        onnx.save(graph, str(path), save_as_external_data=weights > 2**31 - 2**24)
        del graph
        onnx.checker.check_model(str(path), full_check=True)
        result["checked"] = True
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        got = [session.run(["saliency", "plain_logits"], {"image": images[i : i + 2]}) for i in (0, 2)]
        del session
        result["engine"] = _engine(build_engine, path) if engine else None
    saliency, plain = (np.concatenate(parts) for parts in zip(*got, strict=True))

    narrow, _ = _autograd(fold_batchnorm(model), torch.from_numpy(images))
    wide, labels = _autograd(model.double(), torch.from_numpy(images).double())
    result |= _distance(saliency, wide) | {"torch_float32": _distance(narrow, wide)}
    result["labels_equal"] = bool((plain.argmax(1) == labels).all())
    result["within_limits"] = (
        result["cosine"]["min"] >= LIMITS["cosine"]
        and result["relative_l2"]["max"] <= LIMITS["relative_l2"]
        and result["labels_equal"]
    )
    # float32 itself may be beyond the limits: a pre-activation near 0 falls on the other side of its ReLU.
    torch_error = result["torch_float32"]["relative_l2"]["max"]
    result["as_exact_as_torch"] = result["relative_l2"]["max"] <= 2 * torch_error and result["labels_equal"]
    return result


def _autograd(model: Any, images: Any) -> tuple[Any, Any]:
    """Saliency and labels by PyTorch."""
    import torch

    x = images.requires_grad_()
    largest, labels = model(x).max(1)
    (gradient,) = torch.autograd.grad(largest.sum(), x)
    return gradient.numpy(), labels.numpy()


def _distance(got: Any, want: Any) -> dict[str, Any]:
    import numpy as np

    a, b = got.reshape(IMAGES, -1).astype(np.float64), want.reshape(IMAGES, -1)
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    errors = np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)
    return {
        "cosine": {"min": float(cosines.min()), "median": float(np.median(cosines))},
        "relative_l2": {"max": float(errors.max()), "median": float(np.median(errors))},
    }


def _engine(build: Any, path: Path) -> dict[str, Any]:
    from sad_runtime.errors import UserError

    try:
        info = build(path, path.with_suffix(".plan"), flavor="rtx", batch=(1, 4, 8))
    except UserError as error:
        return {"built": False, "error": str(error)[:200]}
    return {"built": True, "seconds": info.seconds, "bytes": info.bytes}


def in_its_own_process(name: str, size: int, *, engine: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, str(size), *([] if engine else ["--no-engines"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        return {"model": name, "size": size, "error": last}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--no-engines", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "SIZE"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage.json")
    arguments = parser.parse_args()
    if arguments.one:
        name, size = arguments.one
        print(json.dumps(measure(name, int(size), engine=not arguments.no_engines)))
        return
    names = arguments.models or classifiers()
    runs = []
    for name in names:
        small = next((size for prefix, size in SMALL.items() if name.startswith(prefix)), 64)
        runs += [(name, size) for size in sorted({small, FULL_SIZE.get(name, small)})]
    kept = (
        json.loads(arguments.out.read_text())["results"]
        if arguments.models and arguments.out.exists()
        else []
    )
    results = [result for result in kept if result["model"] not in names]
    for name, size in runs:
        result = in_its_own_process(name, size, engine=not arguments.no_engines)
        results.append(result)
        engine = result.get("engine")
        print(
            f"{name:24}{size:5}  {result.get('error') or ''}"
            f"{'' if 'error' in result else _line(result)}"
            f"{'' if engine is None else '  engine ' + ('ok' if engine['built'] else engine['error'])}",
            flush=True,
        )
        summary = {
            "models": len({r["model"] for r in results}),
            "differentiated": _all_runs(results, lambda r: r.get("checked")),
            "engines_built": _all_runs(results, lambda r: (r.get("engine") or {}).get("built")),
            "within_limits": _all_runs(results, lambda r: r.get("within_limits")),
            "within_limits_or_as_exact_as_torch": _all_runs(
                results, lambda r: r.get("within_limits") or r.get("as_exact_as_torch")
            ),
        }
        figures = {"machine": machine(), "limits": LIMITS, "images": IMAGES, "summary": summary}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(
            json.dumps(figures | {"results": results}, indent=2) + "\n", encoding="utf-8"
        )
    write_results(arguments.out, figures | {"results": results})


def _all_runs(results: list[dict[str, Any]], holds: Callable[[dict[str, Any]], Any]) -> int:
    """Models of which every run passes."""
    return len({r["model"] for r in results} - {r["model"] for r in results if not holds(r)})


def _line(result: dict[str, Any]) -> str:
    return (
        f"two_pass {result['two_pass_seconds']:5.1f} s  cosine {result['cosine']['min']:.7f}"
        f"  L2 {result['relative_l2']['max']:.1e} (torch {result['torch_float32']['relative_l2']['max']:.1e})"
        f"  labels {'equal' if result['labels_equal'] else 'differ'}"
    )


if __name__ == "__main__":
    main()
