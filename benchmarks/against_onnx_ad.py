"""The input gradient by onnx-ad, the general differentiator of ONNX graphs, and by sad_export.

    pip install onnx-ad
    python benchmarks/against_onnx_ad.py [--models resnet18 maxvit_t] [--timed resnet18 resnet50]

Both get the forward graph of the same folded torchvision classifier (random weights, randomised
statistics). onnx-ad refuses a dynamic batch for Conv, so it gets a static one; its number of seeds is set to
1, and its seed is the one-hot of the largest logit. Correct is a gradient in onnxruntime within 1e-2
(relative L2, each image) of float64 autograd, or, where float32 itself turns a decision over, of float32
autograd.

Cost is process CPU time on one thread at 224², all graphs interleaved in one process; a ratio is
onnx-ad / sad_export, of the medians. The graphs of the timed models are also given to TensorRT for RTX.
Each model runs in a process of its own.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ad  # type: ignore[import-untyped]
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import torch
import torchvision
from coverage import FORK, ROOT, SMALL, classifiers
from cpu_cost import interleaved, session
from float64 import Array
from measuring import machine, write_results
from onnx import helper, numpy_helper

from sad_deploy.fold import fold_batchnorm
from sad_export import input_gradient
from sad_export.tensorrt import build_engine
from sad_runtime.errors import UserError

sys.path.insert(0, str(ROOT))
from tests.support.models import forward_onnx, randomised, small_cnn

CORRECT = 1e-2
TIMED = ["resnet18", "resnet50", "mobilenet_v3_large", "efficientnet_b0", "densenet121", "regnet_y_800mf"]
IMAGES = 2


def by_onnx_ad(forward: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """The gradient of the largest logit: outputs ``logits`` (N, K) and ``gradient`` (N, C, H, W, 1).

    Args:
        forward: Input ``x``, output ``logits``, a dynamic batch; not modified.
        batch: N of the result.

    Raises:
        Exception: Of any kind; onnx-ad has no class for all of its refusals.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(forward)
    _set_dimensions(fixed.graph, "N", batch)
    model = onnx_ad.reverse(fixed, layout="onnx")
    graph = model.graph
    _set_dimensions(graph, "nadj", 1)
    classes = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    seed = next(value for value in graph.input if value.name == "adj_logits")
    graph.input.remove(seed)
    constants = {"seed/depth": np.array(classes), "seed/values": np.array([0, 1], np.float32)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.initializer.append(numpy_helper.from_array(np.array([2]), "seed/axes"))
    graph.node.extend(
        [
            helper.make_node("ArgMax", ["logits"], ["seed/label"], axis=1, keepdims=0),
            helper.make_node("OneHot", ["seed/label", *constants], ["seed/one_hot"], axis=-1),
            helper.make_node("Unsqueeze", ["seed/one_hot", "seed/axes"], ["adj_logits"]),
        ]
    )
    ordered = ir.from_proto(model)
    common_passes.TopologicalSortPass()(ordered)
    proto: onnx.ModelProto = ir.to_proto(ordered)
    onnx.checker.check_model(proto)
    return proto


def _set_dimensions(graph: onnx.GraphProto, name: str, size: int) -> None:
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == name:
                dimension.dim_value = size


def measure(name: str, *, timed: bool, batch: int, rounds: int) -> dict[str, Any]:
    """Whether each differentiates a model, and correctly; if timed, also the cost and the engines."""
    torch.manual_seed(0)
    auxiliary = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = randomised(torchvision.models.get_model(name, weights=None, **auxiliary))
    size = next((size for prefix, size in SMALL.items() if name.startswith(prefix)), 64)
    forward = forward_onnx(model, (3, size, size))
    images = np.random.default_rng(0).normal(size=(IMAGES, 3, size, size)).astype(np.float32)
    folded = fold_batchnorm(model)
    references = [_autograd(folded, images)]
    references.append(_autograd(folded.double(), images.astype(np.float64)))
    result: dict[str, Any] = {"model": name, "size": size}
    makers: dict[str, Callable[[], onnx.ModelProto]] = {
        "onnx_ad": lambda: by_onnx_ad(forward, IMAGES),
        "sad_export": lambda: input_gradient(forward),
    }
    with tempfile.TemporaryDirectory() as folder:
        for key, make in makers.items():
            path = Path(folder) / f"{key}.onnx"
            result[key] = _judged(make, path, images, references)
            if timed and path.exists():
                result[key] |= _engine(path)
        if timed:
            result["cost"] = _cost(model, batch, rounds, Path(folder))
    return result


def _autograd(model: torch.nn.Module, images: Array) -> Array:
    x = torch.from_numpy(images).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).max(1).values.sum(), x)
    return gradient.double().numpy()


def _judged(
    make: Callable[[], onnx.ModelProto], path: Path, images: Array, references: list[Array]
) -> dict[str, Any]:
    """One differentiator's graph against autograd in float32 and float64."""
    try:
        graph = make()
    except Exception as error:
        return {"differentiated": False, "error": f"{type(error).__name__}: {error}"[:400]}
    nodes = len(graph.graph.node)
    save(graph, path)
    loaded = session(path)
    got = loaded.run([loaded.get_outputs()[1].name], {loaded.get_inputs()[0].name: images})[0]
    errors = [_errors(got.reshape(images.shape), reference) for reference in references]
    return {
        "differentiated": True,
        "nodes": nodes,
        "relative_l2": {"float32": float(errors[0].max()), "float64": float(errors[1].max())},
        "correct": bool((np.minimum(*errors) <= CORRECT).all()),
    }


def save(graph: onnx.ModelProto, path: Path) -> None:
    """Write a model, its weights beside it where a protobuf message cannot hold them."""
    weights = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    onnx.save(graph, str(path), save_as_external_data=weights > 2**31 - 2**24, location=f"{path.stem}.data")


def _errors(got: Array, want: Array) -> Array:
    difference = (got - want).reshape(len(want), -1)
    errors: Array = np.linalg.norm(difference, axis=1) / np.linalg.norm(want.reshape(len(want), -1), axis=1)
    return errors


def _engine(path: Path) -> dict[str, Any]:
    plan = path.with_suffix(".plan")
    try:
        build_engine(path, plan, flavor="rtx", batch=(IMAGES, IMAGES, IMAGES))
    except UserError as error:
        return {"engine": False, "engine_error": str(error)[:400]}
    plan.unlink()
    return {"engine": True}


def _cost(model: torch.nn.Module, batch: int, rounds: int, folder: Path) -> dict[str, Any]:
    """CPU seconds of every graph at 224², and the ratios."""
    forward = forward_onnx(model, (3, 224, 224))
    graphs = {
        "forward": forward,
        "onnx_ad": by_onnx_ad(forward, batch),
        "portable": input_gradient(forward),
        "cpu": input_gradient(forward, target="cpu"),
    }
    images = np.random.default_rng(0).normal(size=(batch, 3, 224, 224)).astype(np.float32)
    jobs: dict[str, Callable[[], Any]] = {}
    for key, graph in graphs.items():
        path = folder / f"{key}.onnx"
        save(graph, path)
        loaded = session(path)
        jobs[key] = functools.partial(loaded.run, None, {loaded.get_inputs()[0].name: images})
    seconds = interleaved(jobs, rounds)
    return {
        "batch": batch,
        "cpu_seconds": seconds,
        "onnx_ad_over": {key: seconds["onnx_ad"] / seconds[key] for key in ("portable", "cpu")},
    }


def in_its_own_process(name: str, **options: Any) -> dict[str, Any]:
    """Measure one model; a crash is its result."""
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: there.send(measure(name, **options)))
    process.start()
    there.close()
    try:
        result: dict[str, Any] = here.recv()
    except EOFError:
        process.join()
        return {"model": name, "error": f"its process ended with {process.exitcode}"}
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--timed", nargs="*", default=TIMED)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "against_onnx_ad.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # What every process needs is loaded once, before they part.
    forward_onnx(small_cnn())
    results = []
    for name in arguments.models or classifiers():
        timed = name in arguments.timed
        results.append(in_its_own_process(name, timed=timed, batch=arguments.batch, rounds=arguments.rounds))
        print(json.dumps(results[-1]), flush=True)
    sides = ("onnx_ad", "sad_export")
    summary = {
        side: {
            key: sum(bool(r.get(side, {}).get(key)) for r in results) for key in ("differentiated", "correct")
        }
        for side in sides
    }
    measured_on = machine()
    measured_on["versions"]["onnx-ad"] = onnx_ad.__version__
    for side in sides:
        built = [r[side]["engine"] for r in results if "engine" in r.get(side, {})]
        summary[side] |= {"engines_tried": len(built), "engines_built": sum(built)}
    figures = {"machine": measured_on, "correct_within": CORRECT, "models": len(results)}
    write_results(arguments.out, figures | {"summary": summary, "results": results})
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
