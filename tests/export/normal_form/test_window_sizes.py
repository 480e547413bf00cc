"""Pools whose windows ONNX's inference counts otherwise than runtimes do: the gradient runs, and is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from sad_export import input_gradient, unsupported_nodes

SIZE = (9, 8)


def classifier(op_type: str, opset: int, **attributes: Any) -> onnx.ModelProto:
    """Pool, square, 1×1 convolution, mean: every element of the pool's output counts differently."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 3, 1, 1)).astype(np.float32)}
    inputs = ["image"]
    if op_type == "ConvTranspose":
        weights["t"] = rng.standard_normal((3, 3, *attributes["kernel_shape"])).astype(np.float32)
        inputs.append("t")
    nodes = [
        helper.make_node(op_type, inputs, ["p"], **attributes),
        helper.make_node("Mul", ["p", "p"], ["q"]),
        helper.make_node("Conv", ["q", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["g"]),
        helper.make_node("Flatten", ["g"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pool",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, *SIZE])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto, images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray[Any, Any]] = session.run(None, {session.get_inputs()[0].name: images})
    return outputs


CEIL = {"ceil_mode": 1, "kernel_shape": [2, 2], "strides": [2, 3]}
TRANSPOSED = {"kernel_shape": [3, 3], "output_padding": [1, 1]}
POOLS = [
    ("MaxPool", {**CEIL, "pads": [1, 1, 1, 1]}),
    ("MaxPool", {**CEIL, "strides": [4, 3], "kernel_shape": [1, 2]}),
    ("MaxPool", {**CEIL, "dilations": [2, 1], "strides": [3, 4]}),
    ("MaxPool", {**CEIL, "auto_pad": "VALID", "strides": [4, 4]}),
    ("MaxPool", {**CEIL, "auto_pad": "SAME_UPPER", "strides": [4, 3]}),
    ("AveragePool", {**CEIL, "pads": [1, 1, 1, 1]}),
    ("AveragePool", {**CEIL, "auto_pad": "SAME_LOWER", "strides": [4, 3]}),
    ("AveragePool", {**CEIL, "pads": [1, 0, 1, 1], "count_include_pad": 1}),
    ("LpPool", {**CEIL, "pads": [1, 1, 1, 1]}),
    ("ConvTranspose", {**TRANSPOSED, "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("ConvTranspose", {**TRANSPOSED, "strides": [3, 3], "auto_pad": "SAME_LOWER"}),
]  # fmt: skip


@pytest.mark.parametrize("opset", [13, 17, 18, 21, 22])
@pytest.mark.parametrize(("op_type", "attributes"), POOLS)
def test_gradient_of_an_ambiguous_pool_runs_and_is_right(
    op_type: str, attributes: dict[str, Any], opset: int
) -> None:
    if op_type == "LpPool" and opset < 18:
        pytest.skip("LpPool has ceil_mode from opset 18 on")
    model = classifier(op_type, opset, **attributes)
    images = np.random.default_rng(1).random((2, 3, *SIZE), dtype=np.float32)
    (forward,) = run(model, images)
    logits, gradient = run(input_gradient(model), images)
    np.testing.assert_allclose(logits, forward, rtol=1e-4, atol=1e-5)
    label = int(forward[0].argmax())
    step = 1e-3
    moved = np.repeat(images[:1], 2 * images[0].size, axis=0).reshape(2, -1, images[0].size)
    positions = np.arange(images[0].size)
    moved[0, positions, positions] += step
    moved[1, positions, positions] -= step
    (around,) = run(model, moved.reshape(-1, *images[0].shape))
    slopes = np.subtract(*around[:, label].astype(np.float64).reshape(2, -1)) / (2 * step)
    # Where two elements of a window are within one step, the maximum changes.
    error = abs(slopes - gradient[0].ravel())
    assert (error > 0.02 * abs(gradient[0]).max()).mean() < 0.02


def test_auto_pad_of_a_dilated_pool_is_refused_by_name() -> None:
    model = classifier("MaxPool", 17, kernel_shape=[3, 3], auto_pad="SAME_UPPER", dilations=[2, 2])
    (line,) = unsupported_nodes(model)
    assert "auto_pad of a dilated pool" in line


def test_padding_that_cannot_be_written_out_is_refused_by_name() -> None:
    attributes = {"kernel_shape": [2, 2], "strides": [4, 4], "ceil_mode": 1}
    dilated = classifier("MaxPool", 17, **attributes, dilations=[2, 1])
    (line,) = unsupported_nodes(dilated)
    assert "a window that lies wholly in padding" in line


def test_a_pool_that_inference_counts_rightly_stays_as_it_is() -> None:
    model = classifier("MaxPool", 17, **{**CEIL, "strides": [2, 2]})
    (pool,) = (node for node in input_gradient(model).graph.node if node.output[0] == "p")
    assert next(each for each in pool.attribute if each.name == "ceil_mode").i == 1
