"""Small convolutional classifiers in ONNX, written by hand as exporters write them, and running them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
make = helper.make_node
STEPS = (1e-1, 3e-2, 1e-2, 3e-3)


def classifier(
    change: Callable[[list[onnx.NodeProto], dict[str, Array]], None] | None = None,
    *,
    image: Sequence[int | str | None] = ("N", 3, 12, 12),
    dtype: int = TensorProto.FLOAT,
    output: str = "y",
    shape: Sequence[int | str | None] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """Conv, Relu, GlobalAveragePool, Flatten, Gemm: image → y (N, 5).

    Args:
        change: May change the nodes and the constants before they become a graph.
        image: Shape of the input.
        dtype: Its type.
        output: Name of the output.
        shape: Of the output, if it is stated.
        opset: Of the graph.
    """
    rng = np.random.default_rng(0)

    def numbers(*shape: int) -> Array:
        return (rng.standard_normal(shape) * 0.5).astype(np.float32)

    constants = {"w": numbers(8, 3, 3, 3), "b": numbers(8), "fw": numbers(5, 8), "fb": numbers(5)}
    nodes = [
        make("Conv", ["image", "w", "b"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        make("Relu", ["c"], ["r"], name="relu"),
        make("GlobalAveragePool", ["r"], ["g"], name="pool"),
        make("Flatten", ["g"], ["f"], name="flatten"),
        make("Gemm", ["f", "fw", "fb"], ["y"], transB=1, name="head"),
    ]
    if change is not None:
        change(nodes, constants)
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", dtype, image)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto | Path, images: Array) -> list[Array]:
    """All outputs, on onnxruntime's CPU."""
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, {session.get_inputs()[0].name: images})
    return outputs


def slope_error(phi: Callable[[Array], Array], images: Array, gradient: Array) -> float:
    """Largest relative error of ‖gradient‖ against the slope of the largest output along it.

    Args:
        phi: Images to outputs (N, K).
        images: (N, …) float32.
        gradient: Likewise.
    """
    axes = tuple(range(1, gradient.ndim))
    norms = np.sqrt(np.square(gradient, dtype=np.float64).sum(axes))
    direction = gradient / norms.reshape(-1, *[1] * len(axes))
    rows, labels = np.arange(len(images)), phi(images).argmax(1)
    slopes = []
    for step in STEPS:
        above, below = (phi((images + sign * step * direction).astype(np.float32)) for sign in (1, -1))
        slopes.append((above[rows, labels] - below[rows, labels]) / (2 * step))
    return float(np.abs(np.array(slopes) / norms - 1).min(0).max())
