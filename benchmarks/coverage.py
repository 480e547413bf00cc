"""Every torchvision classifier with BatchNorm: does its two-pass graph build, and how exact is its saliency?

    python benchmarks/coverage.py [--models resnet18 maxvit_t] [--no-engines]

With --models, the results of the others stay as they are in the file.

Weights are random and BatchNorm statistics randomised; the graph has a dynamic batch and passes
onnx.checker in full. Its saliency on four images is compared twice:

- the rules: the graph evaluated in float64 against float64 autograd of the same folded network, and at the
  small size that for the target cpu too, whose passes are rewritten;
- with float32's rounding: the graph in onnxruntime against float64 autograd of the unfolded network, beside
  PyTorch's own float32 autograd of the folded one, whose error comes from the network alone.

Where float32 misses the limits, what float32 decided (the sign of a pre-activation, the maximum of a window,
the label) is put into the float64 run: what remains then is not a decision that rounding turned over.

Images are small, so that a model takes seconds; one of each family also runs at the size it was made for.
Engines, float32 and float16, are built at the small size. Each model runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torchvision
from float64 import Array, Float64Graph
from measuring import machine, write_results
from variants import two_pass_in

from sad_deploy.fold import fold_batchnorm
from sad_export import two_pass
from sad_export.graph.write import LARGEST_WEIGHTS
from sad_export.tensorrt import build_engine
from sad_runtime.errors import UserError

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.support.models import forward_onnx, randomised, small_cnn  # noqa: E402

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
FORK = multiprocessing.get_context("fork")
LARGEST_IN_FLOAT64 = 1 << 31
"""Bytes of float32 weights beyond which 24 GB of memory do not hold all copies in float64."""
EXACT = 1e-7
"""Relative L2 of exact rules in float64: constants such as 1/9 are the file's float32 numbers."""


def classifiers() -> list[str]:
    """The torchvision classifiers with BatchNorm, by name."""
    families: tuple[str, ...] = (
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


def measure(name: str, size: int, *, small: bool, engines: bool) -> dict[str, Any]:
    """Export, differentiate, check, compare and build one model; at the small size for the target cpu too."""
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
    for_cpu = two_pass(forward, eta=0.05, target="cpu") if small else None
    images = np.random.default_rng(0).normal(size=(IMAGES, 3, size, size)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path, source = Path(folder) / "model.onnx", Path(folder) / "forward.onnx"
        weights = _save(graph, path)
        _save(forward, source)
        del graph, forward
        onnx.checker.check_model(str(path), full_check=True)
        result["checked"] = True
        if weights > LARGEST_IN_FLOAT64:
            narrow, labels = _autograd(model, torch.from_numpy(images))
            del model
            result |= _against_float32(path, narrow, labels, images)
        else:
            autograd = _by_autograd(model, images)
            del model
            result |= _exactness(path, autograd, images)
            if for_cpu is not None:
                (wide,) = Float64Graph(for_cpu).run(["saliency"], {"image": images})
                result["cpu_rules_in_float64"] = _distance(wide, autograd["folded"])
        if engines:
            result["engine"] = _engine(path)
            half = path.with_suffix(".fp16.onnx")
            result["engine_fp16"] = _in_fp16(source, half, images) or _engine(half)
    return result


def _save(graph: onnx.ModelProto, path: Path) -> int:
    """Returns the bytes of the weights."""
    weights = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    # A protobuf message ends at 2 GiB.
    onnx.save(graph, str(path), save_as_external_data=weights > LARGEST_WEIGHTS, location=f"{path.stem}.data")
    return weights


def _by_autograd(model: torch.nn.Module, images: Array) -> dict[str, Array]:
    """PyTorch's saliency: folded in float32 and float64, and unfolded in float64, which the model becomes."""
    folded = fold_batchnorm(model)
    narrow, _ = _autograd(folded, torch.from_numpy(images))
    wide_folded, _ = _autograd(folded.double(), torch.from_numpy(images).double())
    del folded
    wide, labels = _autograd(model.double(), torch.from_numpy(images).double())
    return {"float32": narrow, "folded": wide_folded, "unfolded": wide, "labels": labels}


def _exactness(path: Path, autograd: dict[str, Array], images: Array) -> dict[str, Any]:
    """The saliency against autograd: the rules in float64, and what float32 makes of them."""
    saliency, plain = _in_onnxruntime(path, ["saliency", "plain_logits"], images)
    in_float64 = Float64Graph(onnx.load(str(path)))
    (wide,) = in_float64.run(["saliency"], {"image": images})
    rules, result = _distance(wide, autograd["folded"]), _distance(saliency, autograd["unfolded"])
    labels_equal = bool((plain.argmax(1) == autograd["labels"]).all())
    within = (
        result["cosine"]["min"] >= LIMITS["cosine"]
        and result["relative_l2"]["max"] <= LIMITS["relative_l2"]
        and labels_equal
    )
    torch_error = _distance(autograd["float32"], autograd["unfolded"])
    result |= {"torch_float32": torch_error, "labels_equal": labels_equal}
    result |= {"rules_in_float64": rules, "rules_exact": rules["relative_l2"]["max"] <= EXACT}
    result["within_limits"] = within
    if not within:
        result["with_float32_decisions"] = _with_float32_decisions(path, in_float64, saliency, images)
    return result


def _against_float32(path: Path, narrow: Array, labels: Array, images: Array) -> dict[str, Any]:
    """The saliency of a model too large for float64 against PyTorch's float32 autograd."""
    saliency, plain = _in_onnxruntime(path, ["saliency", "plain_logits"], images)
    return {
        "against_torch_float32": _distance(saliency, narrow),
        "labels_equal": bool((plain.argmax(1) == labels).all()),
    }


def _in_onnxruntime(path: Path, outputs: list[str], images: Array) -> list[Array]:
    """Outputs of the graph in float32, two images at a time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    parts = [session.run(outputs, {"image": images[i : i + 2]}) for i in range(0, len(images), 2)]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _with_float32_decisions(
    path: Path, in_float64: Float64Graph, saliency: Array, images: Array
) -> dict[str, Any]:
    """How many decisions float32 takes otherwise than float64, and the saliency's error without these."""
    graph = onnx.load(str(path))
    decisions = _decisions(graph.graph)
    names = [value.name for value in decisions]
    graph.graph.output.extend(decisions)
    with tempfile.TemporaryDirectory() as folder:
        shown = Path(folder) / "decisions.onnx"
        _save(graph, shown)
        del graph
        decided = _in_onnxruntime(shown, names, images)
    would = in_float64.run(names, {"image": images})
    given = dict(zip(names, decided, strict=True))
    (forced,) = in_float64.run(["saliency"], {"image": images} | given)
    return {
        "decisions": sum(array.size for array in decided),
        "turned_over": sum(int((a != b).sum()) for a, b in zip(decided, would, strict=True)),
        **_distance(saliency, forced),
    }


def _decisions(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """What the first pass and the backward compute that is no float: masks, and the label."""
    kinds = (onnx.TensorProto.BOOL, onnx.TensorProto.INT64)
    first = {name for node in graph.node if not node.name.startswith("second/") for name in node.output}
    return [v for v in graph.value_info if v.name in first and v.type.tensor_type.elem_type in kinds]


def _autograd(model: Any, images: Any) -> tuple[Array, Array]:
    """Saliency and labels by PyTorch."""
    x = images.requires_grad_()
    largest, labels = model(x).max(1)
    (gradient,) = torch.autograd.grad(largest.sum(), x)
    return gradient.numpy(), labels.numpy()


def _distance(got: Array, want: Array) -> dict[str, Any]:
    a, b = got.reshape(IMAGES, -1).astype(np.float64), want.reshape(IMAGES, -1)
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    errors = np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)
    return {
        "cosine": {"min": float(cosines.min()), "median": float(np.median(cosines))},
        "relative_l2": {"max": float(errors.max()), "median": float(np.median(errors))},
    }


def _in_fp16(forward: Path, half: Path, images: Array) -> dict[str, Any] | None:
    """Write the graph in fp16, as ``export --precision fp16`` does; why not, if it cannot be."""
    try:
        _save(two_pass_in("fp16", forward, images, eta=0.05), half)
    except UserError as error:
        return {"built": False, "error": str(error)[:400]}
    return None


def _engine(path: Path) -> dict[str, Any]:
    plan = path.with_suffix(".plan")
    try:
        info = build_engine(path, plan, flavor="rtx", batch=(1, 4, 8))
    except UserError as error:
        return {"built": False, "error": str(error)[:400]}
    plan.unlink()
    return {"built": True, "precision": info.precision, "seconds": info.seconds, "bytes": info.bytes}


def in_its_own_process(name: str, sizes: list[int], *, engines: bool) -> list[dict[str, Any]]:
    """Measure a model at each size, with engines at the first; a crash is one line of the results."""
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_send, args=(there, name, sizes, engines))
    started = time.monotonic()
    process.start()
    there.close()
    results: list[dict[str, Any]] = []
    for size in sizes:
        try:
            results.append(here.recv())
        except EOFError:
            process.join()
            results.append(
                {"model": name, "size": size, "error": f"its process ended with {process.exitcode}"}
            )
            break
    process.join()
    print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return results


def _send(pipe: Connection, name: str, sizes: list[int], engines: bool) -> None:
    for size in sizes:
        try:
            small = size == sizes[0]
            result = measure(name, size, small=small, engines=engines and small)
        except Exception as error:
            # One model that fails in an unforeseen way must not end the sweep.
            result = {"model": name, "size": size, "error": f"{type(error).__name__}: {error}"[:400]}
        pipe.send(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--no-engines", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage.json")
    arguments = parser.parse_args()
    names = arguments.models or classifiers()
    kept = (
        json.loads(arguments.out.read_text())["results"]
        if arguments.models and arguments.out.exists()
        else []
    )
    results = [result for result in kept if result["model"] not in names]
    torch.set_num_threads(1)
    # What every process needs is loaded once, before they part: the exporter's own start takes seconds.
    forward_onnx(small_cnn())
    for name in names:
        small = next((size for prefix, size in SMALL.items() if name.startswith(prefix)), 64)
        sizes = sorted({small, FULL_SIZE.get(name, small)})
        for result in in_its_own_process(name, sizes, engines=not arguments.no_engines):
            results.append(result)
            print(f"{name:20}{result['size']:4}  {result.get('error') or _line(result)}", flush=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(_figures(results), indent=2) + "\n", encoding="utf-8")
    write_results(arguments.out, _figures(results))


def _figures(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The file: results and what they come to, in models of which every run passes."""
    summary = {
        "models": len({r["model"] for r in results}),
        "differentiated": _all_runs(results, lambda r: r.get("checked")),
        "engines_built": _all_runs(results, lambda r: r.get("engine", {"built": r.get("checked")})["built"]),
        "engines_fp16_built": _all_runs(
            results, lambda r: r.get("engine_fp16", {"built": r.get("checked")})["built"]
        ),
        "rules_exact_in_float64": _all_runs(results, lambda r: r.get("rules_exact")),
        "cpu_rules_exact_in_float64": _all_runs(results, _cpu_exact),
        "within_limits_in_float32": _all_runs(results, lambda r: r.get("within_limits")),
        "within_limits_but_for_turned_decisions": _all_runs(results, _but_for_turned_decisions),
    }
    limits = LIMITS | {"exact": EXACT}
    return {"machine": machine(), "limits": limits, "images": IMAGES, "summary": summary, "results": results}


def _cpu_exact(result: dict[str, Any]) -> bool:
    if "cpu_rules_in_float64" not in result:
        return "rules_in_float64" in result  # at another size
    return bool(result["cpu_rules_in_float64"]["relative_l2"]["max"] <= EXACT)


def _but_for_turned_decisions(result: dict[str, Any]) -> bool:
    if "with_float32_decisions" not in result:
        return bool(result.get("within_limits"))
    rest = result["with_float32_decisions"]
    return bool(
        result["labels_equal"]
        and rest["cosine"]["min"] >= LIMITS["cosine"]
        and rest["relative_l2"]["max"] <= LIMITS["relative_l2"]
    )


def _all_runs(results: list[dict[str, Any]], holds: Callable[[dict[str, Any]], Any]) -> int:
    return len({r["model"] for r in results} - {r["model"] for r in results if not holds(r)})


def _line(result: dict[str, Any]) -> str:
    parts = [f"two_pass {result['two_pass_seconds']:4.1f} s"]
    if against := result.get("against_torch_float32"):
        parts.append(f"against torch's float32 {against['relative_l2']['max']:.1e}")
    else:
        torch_got = result["torch_float32"]["relative_l2"]["max"]
        parts += [
            f"float64 {result['rules_in_float64']['relative_l2']['max']:.0e}",
            f"float32 {result['relative_l2']['max']:.1e} (torch {torch_got:.1e})",
        ]
    if cpu := result.get("cpu_rules_in_float64"):
        parts.append(f"cpu float64 {cpu['relative_l2']['max']:.0e}")
    if forced := result.get("with_float32_decisions"):
        parts.append(f"{forced['turned_over']} turned over, without these {forced['relative_l2']['max']:.0e}")
    for key in ("engine", "engine_fp16"):
        if engine := result.get(key):
            parts.append(f"{key} " + (f"{engine['seconds']:.0f} s" if engine["built"] else engine["error"]))
    return "  ".join(parts)


if __name__ == "__main__":
    main()
