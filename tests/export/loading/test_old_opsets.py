"""Graphs of opset 7 to 12, as older exporters wrote them, are converted, and it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sad_export import GraphError, defend, write_gradient
from sad_export.loading import load_classifier
from tests.support.graphs import run, slope_error

Array = np.ndarray[Any, Any]
make = helper.make_node
IMAGES = np.random.default_rng(2).random((3, 3, 12, 12), dtype=np.float32)


def by_inputs(opset: int, since: int, op: str, x: str, y: str, **attributes: Any) -> onnx.NodeProto:
    """An operator whose attributes became inputs; the constants are named after the attributes."""
    if opset < since:
        return make(op, [x], [y], **attributes)
    return make(op, [x, *attributes], [y])


def classifier(opset: int, *, ir_version: int = 3, tail: str | None = None) -> onnx.ModelProto:
    """Most of what changed its form between opset 7 and 13, in one network."""
    rng = np.random.default_rng(0)

    def numbers(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32) * 0.5

    weights = {
        "w": numbers(8, 3, 3, 3), "scale": 1 + 0.3 * numbers(8), "shift": numbers(8), "mean": numbers(8),
        "var": np.abs(numbers(8)) + 0.5, "fc": numbers(5, 8), "fb": numbers(5),
        "slope": np.abs(numbers(8, 1, 1)),
        "min": np.array(-2, np.float32), "max": np.array(2, np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "starts": np.array([1]), "ends": np.array([9]), "axes": np.array([2]),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "roi": np.array([], np.float32),
    }  # fmt: skip
    nodes = [
        make("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1]),
        make("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["bn"], epsilon=1e-3),
        make("Dropout", ["bn"], ["drop"]),
        make("PRelu", ["drop", "slope"], ["prelu"]),
        by_inputs(opset, 11, "Clip", "prelu", "clip", min=-2.0, max=2.0),
        by_inputs(opset, 11, "Pad", "clip", "pad", pads=[0, 0, 1, 1, 0, 0, 1, 1]),
        by_inputs(opset, 10, "Slice", "pad", "slice", starts=[1], ends=[9], axes=[2]),
        make("Split", ["slice"], ["left", "right"], axis=1, split=[4, 4]),
        make("Softmax", ["left"], ["soft"], axis=1),  # over (C, H, W) at once before opset 13
        make("Concat", ["soft", "right"], ["cat"], axis=1),
        make("ReduceMean", ["cat"], ["rows"], axes=[3], keepdims=1),
        make("Squeeze", ["rows"], ["squeezed"], axes=[3]),
        make("Unsqueeze", ["squeezed"], ["image2"], axes=[3]),
        make("AveragePool", ["image2"], ["pool"], kernel_shape=[2, 1], strides=[2, 1]),
        make("MaxPool", ["pool"], ["max_pool"], kernel_shape=[2, 1], strides=[1, 1]),
        make("ReduceSum", ["max_pool"], ["sums"], axes=[2, 3], keepdims=0),
        make("Gemm", ["sums", "fc", "fb"], ["y"], transB=1),
    ]
    if opset < 9:
        up = make("Upsample", ["cat"], ["up"], mode="nearest", scales=[1.0, 1.0, 2.0, 2.0])
    elif opset == 9:
        up = make("Upsample", ["cat", "scales"], ["up"], mode="nearest")
    else:
        inputs = ["cat", "scales"] if opset == 10 else ["cat", "roi", "scales"]
        up = make("Resize", inputs, ["up"], mode="nearest")
    nodes.insert(10, up)
    nodes[11].input[0] = "up"
    if tail:
        nodes.append(make(tail, ["y"], ["p"], axis=1))
    used = {name for each in nodes for name in each.input}
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items() if name in used]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 12, 12])]
    if ir_version < 4:  # every initializer is an input too
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, ["N", 5])
    graph = helper.make_graph(nodes, "old", inputs, [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


@pytest.mark.parametrize("ir_version", [3, 8])
@pytest.mark.parametrize("opset", range(7, 13))
def test_the_gradient_is_the_slope_of_the_old_file(opset: int, ir_version: int, tmp_path: Path) -> None:
    forward, out = tmp_path / "old.onnx", tmp_path / "gradient.onnx"
    onnx.save(classifier(opset, ir_version=ir_version), forward)
    said: list[str] = []
    write_gradient(forward, out, notice=said.append)
    assert said == [f"the graph of opset {opset} was converted to opset 13"]
    logits, gradient = run(out, IMAGES)
    np.testing.assert_allclose(logits, run(forward, IMAGES)[0], rtol=1e-4, atol=1e-5)
    assert slope_error(lambda x: run(forward, x)[0], IMAGES, gradient) < 0.02


def test_weights_that_an_old_file_does_not_list_among_its_inputs(tmp_path: Path) -> None:
    """IR version 3 wants them there; onnxruntime does not mind, and files without exist."""
    model = classifier(9, ir_version=3)
    del model.graph.input[1:]
    onnx.save(model, tmp_path / "old.onnx")
    write_gradient(tmp_path / "old.onnx", tmp_path / "gradient.onnx", notice=lambda line: None)
    expected = run(tmp_path / "old.onnx", IMAGES)[0]
    np.testing.assert_allclose(run(tmp_path / "gradient.onnx", IMAGES)[0], expected, rtol=1e-4, atol=1e-5)


def test_an_old_file_with_probabilities_is_defended(tmp_path: Path) -> None:
    forward = tmp_path / "old.onnx"
    onnx.save(classifier(11, tail="Softmax"), forward)
    said: list[str] = []
    made = defend(forward, tmp_path / "sad.onnx", eta=0.05, notice=said.append)
    assert made.verification.slope_error < 0.05
    assert len(said) == 2
    assert "opset 11 was converted" in said[0]
    assert "holds probabilities (Softmax)" in said[1]


def test_what_the_converter_refuses_is_refused_with_its_reason() -> None:
    """BatchNormalization of opset 7 over every pixel on its own is in no later opset."""
    model = classifier(7)
    model.graph.node[1].attribute.append(helper.make_attribute("spatial", 0))
    with pytest.raises(
        GraphError, match=r"of opset 7 and cannot be brought to opset 13: .*spatial"
    ) as caught:
        load_classifier(model)
    assert "export the classifier with opset 13" in str(caught.value.hint)
