"""The gate of ``gradient``: what is right passes, each way of being wrong is refused by its own figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from sad_export import defend, input_gradient, write_gradient
from sad_export.verify import VerificationError
from sad_export.verify_gradient import verify_gradient
from tests.support.models import forward_onnx, small_cnn


@pytest.fixture(scope="module")
def forward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classifier") / "forward.onnx"
    onnx.save(forward_onnx(small_cnn()), str(path))
    return path


@pytest.fixture(scope="module")
def right(forward: Path) -> onnx.ModelProto:
    return input_gradient(forward)


def with_factor(right: onnx.ModelProto, output: str, factor: float, path: Path) -> Path:
    """The graph with one output multiplied, the other as it is."""
    graph = onnx.ModelProto()
    graph.CopyFrom(right)
    for node in graph.graph.node:
        node.output[:] = ["real" if name == output else name for name in node.output]
        node.input[:] = ["real" if name == output else name for name in node.input]
    graph.graph.initializer.append(numpy_helper.from_array(np.array([factor], np.float32), "factor"))
    graph.graph.node.append(helper.make_node("Mul", ["real", "factor"], [output]))
    onnx.save(graph, str(path))
    return path


@pytest.mark.parametrize("batch", ["N", 1, 2])
def test_the_right_gradient_passes_whatever_its_batch(
    forward: Path, right: onnx.ModelProto, batch: int | str, tmp_path: Path
) -> None:
    path = with_factor(right, "gradient", 1.0, tmp_path / "gradient.onnx")
    graph = onnx.load(str(path))
    dim = graph.graph.input[0].type.tensor_type.shape.dim[0]
    dim.CopyFrom(onnx.TensorShapeProto.Dimension(**{"dim_param" if batch == "N" else "dim_value": batch}))
    onnx.save(graph, str(path))
    verify_gradient(path, forward)


@pytest.mark.parametrize(
    ("output", "factor", "message"),
    [
        ("gradient", -1.0, "error of the slope along the gradient 1.9"),
        ("gradient", 1.2, "error of the slope along the gradient 0.1"),
        ("gradient", 0.0, "error of the slope along the gradient inf > 0.05"),
        ("gradient", float("nan"), "the gradient is not finite"),
        ("logits", 1.001, "relative L2 error of the logits 0.001 > 0.0001"),
    ],
)
def test_each_way_of_being_wrong_is_said(
    forward: Path, right: onnx.ModelProto, output: str, factor: float, message: str, tmp_path: Path
) -> None:
    path = with_factor(right, output, factor, tmp_path / "gradient.onnx")
    with pytest.raises(VerificationError) as caught:
        verify_gradient(path, forward)
    assert caught.value.message.startswith(f"the gradient contradicts {forward}: {message}")
    assert ";" not in caught.value.message


def test_a_gradient_that_does_not_run_is_one_line(
    forward: Path, right: onnx.ModelProto, tmp_path: Path
) -> None:
    path = with_factor(right, "gradient", 1.0, tmp_path / "gradient.onnx")
    graph = onnx.load(str(path))
    graph.graph.node[-1].op_type = "NoOperator"
    onnx.save(graph, str(path))
    with pytest.raises(VerificationError, match="does not run in onnxruntime") as caught:
        verify_gradient(path, forward)
    assert "\n" not in caught.value.message


def changed(forward: Path, path: Path, *nodes: onnx.NodeProto, **constants: object) -> Path:
    """A classifier with nodes between its last value, ``inner``, and its output."""
    model = onnx.load(str(forward))
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["inner" if name == output.name else name for name in node.output]
    model.graph.node.extend(nodes)
    model.graph.node[-1].output[0] = output.name
    model.graph.initializer.extend(numpy_helper.from_array(np.array(v), k) for k, v in constants.items())
    onnx.save(model, str(path))
    return path


def test_a_classifier_whose_own_answers_are_no_numbers_is_named_as_the_cause(
    forward: Path, tmp_path: Path
) -> None:
    nan = np.float32(np.nan)
    path = changed(forward, tmp_path / "nan.onnx", helper.make_node("Add", ["inner", "nan"], ["_"]), nan=nan)
    with pytest.raises(VerificationError, match="itself gives values that are not finite") as caught:
        write_gradient(path, tmp_path / "gradient.onnx")
    assert "report" not in str(caught.value.hint)


def test_a_classifier_that_mixes_the_images_of_a_batch_is_named_as_the_cause(
    forward: Path, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Size", ["inner"], ["count"]),
        helper.make_node("Cast", ["count"], ["factor"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["inner", "factor"], ["_"]),
    ]
    path = changed(forward, tmp_path / "mixed.onnx", *nodes)
    for write in (write_gradient, lambda *paths: defend(*paths, eta=0.1)):
        with pytest.raises(VerificationError, match="computes the images of a batch together"):
            write(path, tmp_path / "out.onnx")
