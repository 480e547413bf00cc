"""What runs an ONNX file in each runtime of portability.py.

Each function makes, of a file and the names of its outputs, a function from inputs to outputs in that order.
It imports its runtime itself: no environment has them all.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
Predict = Callable[[Feeds], Sequence[Array]]
Adapter = Callable[[Path, list[str]], Predict]


def with_onnxruntime(path: Path, names: list[str]) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(names, feeds)


def with_openvino(path: Path, names: list[str]) -> Predict:
    import openvino

    core = openvino.Core()
    wanted = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(path), "CPU", wanted)

    def predict(feeds: Feeds) -> list[Array]:
        found = compiled(feeds)
        return [found[name] for name in names]

    return predict


def with_reference(path: Path, names: list[str]) -> Predict:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path))
    return lambda feeds: evaluator.run(names, feeds)


def with_tract(path: Path, names: list[str]) -> Predict:
    import tract

    # With the batch as the file has it: a number instead contradicts the shapes inside, which name it N.
    model = tract.onnx().load(str(path))
    inputs = [model.input_name(i) for i in range(model.input_count())]
    runnable = model.into_model().into_runnable()
    return lambda feeds: [value.to_numpy() for value in runnable.run([feeds[name] for name in inputs])]


def with_tinygrad(path: Path, names: list[str]) -> Predict:
    from tinygrad import Tensor
    from tinygrad.nn.onnx import OnnxRunner

    def predict(feeds: Feeds) -> list[Array]:
        # A runner keeps to the batch of its first run.
        found = OnnxRunner(str(path))({name: Tensor(array) for name, array in feeds.items()})
        return [found[name].numpy() for name in names]

    return predict


def with_opencv(path: Path, names: list[str]) -> Predict:
    import cv2

    def predict(feeds: Feeds) -> list[Array]:
        net = cv2.dnn.readNetFromONNX(str(path))
        for name, array in feeds.items():
            net.setInput(array, name)
        return net.forward(names)

    return predict


def with_mnn(path: Path, names: list[str]) -> Predict:
    # Its command installs a telemetry package; what it calls does not.
    import _tools
    from MNN import expr, nn

    converted = path.with_suffix(".mnn")
    words = ["MNNConvert", "-f", "ONNX", "--modelFile", str(path), "--MNNModel", str(converted)]
    _tools.mnnconvert([*words, "--bizCode", "none"])
    if not converted.exists():
        raise RuntimeError("not converted")

    def predict(feeds: Feeds) -> list[Array]:
        module = nn.load_module_from_file(str(converted), list(feeds), names)
        dtypes = {"float32": expr.float, "int64": expr.int}
        given = [
            expr.const(np.ascontiguousarray(array), list(array.shape), expr.NCHW, dtypes[array.dtype.name])
            for array in feeds.values()
        ]
        found = [expr.convert(value, expr.NCHW) for value in module.forward(given)]
        return [np.array(value.read()).reshape(value.shape) for value in found]

    return predict


def with_tvm(path: Path, names: list[str]) -> Predict:
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    graph = onnx.load(str(path))

    def predict(feeds: Feeds) -> list[Array]:
        module = from_onnx(graph, shape_dict={name: list(array.shape) for name, array in feeds.items()})
        module = relax.transform.DecomposeOpsForInference()(module)
        machine_code = relax.VirtualMachine(tvm.compile(module, "llvm"), tvm.cpu())
        found = machine_code["main"](*(tvm.runtime.tensor(array) for array in feeds.values()))
        return [value.numpy() for value in found]

    return predict


def with_iree(path: Path, names: list[str]) -> Predict:
    import iree.compiler
    import iree.runtime

    imported = path.with_suffix(".mlir")
    subprocess.run([Path(sys.executable).with_name("iree-import-onnx"), path, "-o", imported], check=True)
    arguments = ["--iree-llvmcpu-target-cpu=host"]
    binary = iree.compiler.compile_file(
        str(imported), target_backends=["llvm-cpu"], input_type="onnx", extra_args=arguments
    )
    config = iree.runtime.Config("local-sync")
    module = iree.runtime.load_vm_module(
        iree.runtime.VmModule.copy_buffer(config.vm_instance, binary), config
    )
    (function,) = (
        module[name] for name in module.vm_module.function_names if "__" not in name and "$" not in name
    )
    return lambda feeds: [value.to_host() for value in function(*feeds.values())]


def with_onnx2torch(path: Path, names: list[str]) -> Predict:
    import onnx2torch
    import torch

    module = onnx2torch.convert(str(path)).eval()
    with torch.no_grad():
        return lambda feeds: [value.numpy() for value in module(*map(torch.from_numpy, feeds.values()))]


def with_onnx2pytorch(path: Path, names: list[str]) -> Predict:
    import onnx
    import torch
    from onnx2pytorch import ConvertModel

    module = ConvertModel(onnx.load(str(path))).eval()
    return lambda feeds: [value.detach().numpy() for value in module(*map(torch.from_numpy, feeds.values()))]


def with_tensorrt_rtx(path: Path, names: list[str]) -> Predict:
    """Builds an engine only, which needs no GPU."""
    from sad_export.tensorrt import build_engine

    with tempfile.TemporaryDirectory() as folder:
        build_engine(path, Path(folder) / "engine.plan", flavor="rtx")
    raise Built


class Built(Exception):  # noqa: N818
    """There is nothing to run."""


RUNTIMES: dict[str, tuple[str, str, Adapter]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime", with_onnxruntime),
    "openvino": ("openvino", "openvino", with_openvino),
    "onnx.reference": ("onnx", "onnx", with_reference),
    "tract": ("tract", "tract", with_tract),
    "tinygrad": ("tinygrad", "tinygrad", with_tinygrad),
    "opencv": ("cv2", "opencv-python-headless", with_opencv),
    "mnn": ("MNN", "MNN", with_mnn),
    "tvm": ("tvm", "apache-tvm", with_tvm),
    "iree": ("iree", "iree-base-compiler", with_iree),
    "onnx2torch": ("onnx2torch", "onnx2torch", with_onnx2torch),
    "onnx2pytorch": ("onnx2pytorch", "onnx2pytorch", with_onnx2pytorch),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx", with_tensorrt_rtx),
}
"""By name: the module, the package whose version counts, and what runs a graph."""
