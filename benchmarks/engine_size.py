"""Size and build time of TensorRT for RTX engines: two passes against one, and where a weight is kept twice.

    python benchmarks/engine_size.py [--models resnet18 resnet50] [--rounds 3]

Random weights, 224², batch 1 to 64 (best 8), no GPU. The single pass is the first pass cut out of the same
two-pass graph, so that both have the same precisions. Seconds are wall time of parsing and building, the best
of the rounds, on all cores of this machine.

The second part has one convolution and its ReLU in both passes and a backward between them, written in
several ways: how much larger the engine is than that of the forward convolution alone, in copies of the
weight. Kernel code is in it, up to a quarter of a copy here.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
import torchvision
from measuring import machine, write_results
from onnx import TensorProto, helper, numpy_helper
from variants import two_pass_in

from sad_deploy.fold import fold_batchnorm
from sad_deploy.to_onnx import to_onnx
from sad_export.tensorrt import EngineCache, build_engine
from sad_runtime.errors import UserError

MODELS = ["resnet18", "resnet50", "mobilenet_v2", "densenet121"]
PRECISIONS = ["fp32", "fp16", "bf16"]
SHAPE = (3, 224, 224)
SIDE = 14
TYPES: dict[str, tuple[int, Any]] = {
    "fp32": (TensorProto.FLOAT, np.float32),
    "fp16": (TensorProto.FLOAT16, np.float16),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
CONVOLUTIONS = [(1024, 1024, 1, False), (1024, 1024, 1, True), (2048, 248, 1, False), (512, 512, 3, False)]
"""Channels out, channels in, side of the kernel, and whether its input is added to its output."""
FORMS = {
    "ConvTranspose": "on the forward Conv's weight",
    "Conv": "on the transposed, flipped weight, which the graph computes",
    "longer Conv": "the same over one more row, which is cut off again",
    "MatMul": "on the transposed weight as a matrix",
    "Einsum": "on the weight as a matrix",
    "MatMul in all passes": "forward and backward as matrix products on one weight",
}


def models(names: list[str], rounds: int) -> list[dict[str, Any]]:
    """Single pass and two passes of each model in each precision."""
    results = []
    for name in names:
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).eval()
        forward = to_onnx(fold_batchnorm(model), SHAPE)
        for precision in PRECISIONS:
            with tempfile.TemporaryDirectory() as folder:
                result = {"model": name, "precision": precision}
                for passes, path in _graphs(forward, precision, Path(folder)).items():
                    built = [
                        build_engine(path, path.with_suffix(".plan"), flavor="rtx") for _ in range(rounds)
                    ]
                    seconds = min(info.seconds for info in built)
                    result[passes] = {"bytes": built[0].bytes, "seconds": seconds}
                result["ratio"] = round(result["two_pass"]["bytes"] / result["single"]["bytes"], 3)
                results.append(result)
                print(_line(result), flush=True)
    return results


def cached(name: str) -> dict[str, Any]:
    """Wall seconds of a call that builds an engine and keeps it, and of one that finds it."""
    torch.manual_seed(0)
    forward = to_onnx(fold_batchnorm(torchvision.models.get_model(name, weights=None).eval()), SHAPE)
    with tempfile.TemporaryDirectory() as folder:
        path = _graphs(forward, "fp32", Path(folder))["two_pass"]
        cache = EngineCache(Path(folder) / "engines")
        seconds = []
        for _ in range(2):
            started = time.monotonic()
            info = build_engine(path, path.with_suffix(".plan"), flavor="rtx", cache=cache)
            seconds.append(round(time.monotonic() - started, 2))
        assert info.from_cache
    return {"model": name, "bytes": info.bytes, "build_seconds": seconds[0], "hit_seconds": seconds[1]}


def _graphs(forward: onnx.ModelProto, precision: str, folder: Path) -> dict[str, Path]:
    """Files of the single pass and of the two passes."""
    images = np.random.default_rng(0).random((2, *SHAPE), dtype=np.float32)
    graph = two_pass_in(precision, forward, images, eta=0.05)
    files = {passes: folder / f"{passes}.onnx" for passes in ("two_pass", "single")}
    onnx.save(graph, str(files["two_pass"]))
    onnx.utils.extract_model(str(files["two_pass"]), str(files["single"]), ["image"], ["plain_logits"])
    return files


def _line(result: dict[str, Any]) -> str:
    single, two = result["single"], result["two_pass"]
    return (
        f"{result['model']:14}{result['precision']:6}"
        f"{single['bytes'] / 1e6:8.2f} MB {single['seconds']:5.1f} s "
        f"{two['bytes'] / 1e6:8.2f} MB {two['seconds']:5.1f} s  {result['ratio']:.3f} ×"
    )


def sharing() -> list[dict[str, Any]]:
    """Copies of one weight that a backward adds, by its form; None where it does not build."""
    results = []
    for precision in PRECISIONS:
        for out, channels, kernel, residual in CONVOLUTIONS:
            copies: dict[str, float | None] = {}
            alone = _size(precision, out, channels, kernel, residual, None)
            assert alone is not None
            for form in FORMS:
                if kernel > 1 and ("MatMul" in form or form == "Einsum"):
                    continue
                if form == "Einsum" and precision == "bf16":  # not in the standard
                    continue
                size = _size(precision, out, channels, kernel, residual, form)
                weight = out * channels * kernel**2 * np.dtype(TYPES[precision][1]).itemsize
                copies[form] = None if size is None else round((size - alone) / weight, 2)
            weight_shape = [out, channels, kernel, kernel]
            result = {"precision": precision, "weight": weight_shape, "residual": residual, "copies": copies}
            results.append(result)
            print(result, flush=True)
    return results


def _size(
    precision: str, out: int, channels: int, kernel: int, residual: bool, form: str | None
) -> int | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g.onnx"
        onnx.save(_Convolution(precision, out, channels, kernel, residual).graph(form), str(path))
        try:
            return build_engine(path, path.with_suffix(".plan"), flavor="rtx").bytes
        except UserError:
            return None


class _Convolution:
    """One convolution at stride 1 with its ReLU, and a backward on the same weight."""

    def __init__(self, precision: str, out: int, channels: int, kernel: int, residual: bool) -> None:
        self._type, self._numpy = TYPES[precision]
        self._residual = residual
        self._out, self._channels, self._kernel = out, channels, kernel
        self._nodes: list[onnx.NodeProto] = []
        weight = np.random.default_rng(0).normal(0, 0.02, (out, channels, kernel, kernel))
        self._initializers = [numpy_helper.from_array(weight.astype(self._numpy), "w")]

    def graph(self, form: str | None) -> onnx.ModelProto:
        """Forward alone without a form; else forward, backward, and forward again on x + 0.1·dx."""
        product = form == "MatMul in all passes"
        x = self._op("Cast", "image", to=self._type)
        y = self._op("Relu", self._forward(x, product))
        channels = self._out
        if form is not None:
            dx = self._backward(self._op("Sigmoid", y), form)
            eta = self._constant(np.array([0.1], self._numpy))
            y = self._forward(self._op("Add", x, self._op("Mul", dx, eta)), product)
        self._nodes.append(helper.make_node("Cast", [y], ["y"], to=TensorProto.FLOAT))
        image, output = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", n, SIDE, SIDE])
            for name, n in (("image", self._channels), ("y", channels))
        )
        made = helper.make_graph(self._nodes, "g", [image], [output], self._initializers)
        model = helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 22)])
        onnx.checker.check_model(model, full_check=True)
        return model

    def _forward(self, x: str, product: bool) -> str:
        if product:
            y = self._matmul(self._matrix(), x, self._channels, self._out)
        else:
            y = self._op("Conv", x, "w", pads=[self._kernel // 2] * 4)
        return self._op("Add", y, x) if self._residual else y

    def _backward(self, dy: str, form: str) -> str:
        if form == "ConvTranspose":
            return self._op("ConvTranspose", dy, "w", pads=[self._kernel // 2] * 4)
        if "Conv" in form:
            last, before, step = ([n, n] for n in (-1, -(2**63), -1))
            weight = "w"
            if self._kernel > 1:
                ends = (self._constant(np.array(n)) for n in (last, before, [2, 3], step))
                weight = self._op("Slice", weight, *ends)
            weight = self._op("Transpose", weight, perm=[1, 0, 2, 3])
            beyond = form == "longer Conv"
            pad = self._kernel // 2
            dx = self._op("Conv", dy, weight, pads=[pad, pad, pad + beyond, pad])
            bounds = (self._constant(np.array([n])) for n in (0, SIDE, 2))
            return self._op("Slice", dx, *bounds) if beyond else dx
        if form == "Einsum":
            return self._op("Einsum", self._matrix(), dy, equation="mc,nmhw->nchw")
        return self._matmul(self._op("Transpose", self._matrix(), perm=[1, 0]), dy, self._out, self._channels)

    def _matrix(self) -> str:
        return self._op("Reshape", "w", self._constant(np.array([self._out, self._channels])))

    def _matmul(self, matrix: str, x: str, channels: int, out: int) -> str:
        columns = self._op("Reshape", x, self._constant(np.array([0, channels, SIDE * SIDE])))
        y = self._op("MatMul", matrix, columns)
        return self._op("Reshape", y, self._constant(np.array([0, out, SIDE, SIDE])))

    def _op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        output = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def _constant(self, array: np.ndarray[Any, Any]) -> str:
        name = f"c{len(self._initializers)}"
        self._initializers.append(numpy_helper.from_array(array, name))
        return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "engine_size.json")
    arguments = parser.parse_args()
    results = {
        "machine": machine(),
        "models": models(arguments.models, arguments.rounds),
        "cache": cached("resnet50"),
        "forms": FORMS,
        "one_convolution": sharing(),
    }
    write_results(arguments.out, results)


if __name__ == "__main__":
    main()
