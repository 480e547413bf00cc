"""Everything that is not a classifier is refused with a one-line reason, all reasons at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sad_export import GraphError, input_gradient
from sad_export.loading import Reading, load_classifier


def classifier(
    *,
    shape: tuple[object, ...] = ("N", 3, 4, 4),
    dtype: int = TensorProto.FLOAT,
    opset: int = 20,
    outputs: tuple[str, ...] = ("y",),
    classes: int = 2,
) -> onnx.ModelProto:
    """Flatten and Gemm, with as many outputs as named."""
    features = int(np.prod([n if isinstance(n, int) else 1 for n in shape[1:]]))
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"])]
    nodes += [helper.make_node("Relu", ["y"], [name]) for name in outputs if name != "y"]
    weight = numpy_helper.from_array(
        np.ones((features, classes), helper.tensor_dtype_to_np_dtype(dtype)), "w"
    )
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(name, dtype, ["N", classes]) for name in outputs],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (classifier(shape=("N", 48)), "has rank 2"),
        (classifier(shape=("N", 3, "H", "W")), "dynamic H or W"),
        (classifier(dtype=TensorProto.INT32), "not a float"),
        (classifier(outputs=("y", "z")), "2 outputs (y (N, 2), z (N, 2)); --logits z takes one of them"),
        (classifier(classes=1), "at least two"),
    ],
    ids=["rank", "dynamic image size", "integer", "two outputs", "one logit"],
)
def test_what_is_not_a_classifier_is_refused(model: onnx.ModelProto, reason: str) -> None:
    with pytest.raises(GraphError) as caught:
        load_classifier(model)
    assert reason in caught.value.message


def test_all_reasons_are_given_at_once() -> None:
    with pytest.raises(GraphError) as caught:
        load_classifier(classifier(shape=("N", 3, "H", 4), dtype=TensorProto.INT32, outputs=("y", "z")))
    assert all(part in caught.value.message for part in ("dynamic H or W", "not a float", "2 outputs"))


def test_one_of_several_outputs_can_be_named() -> None:
    graph = load_classifier(classifier(outputs=("y", "z")), Reading("z"))
    assert graph.logits.name == "z"
    with pytest.raises(GraphError, match="no output 'q' among y, z"):
        load_classifier(classifier(outputs=("y", "z")), Reading("q"))


def test_control_flow_of_constants_is_its_branch() -> None:
    """Both branches give an outer value as it is."""
    model = classifier()
    branch = helper.make_graph(
        [helper.make_node("Identity", ["y"], ["b"])], "b", [], [helper.make_tensor_value_info("b", 1, None)]
    )
    condition = numpy_helper.from_array(np.array(True), "c")
    model.graph.initializer.append(condition)
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))
    model.graph.output[0].name = "z"
    assert load_classifier(model).logits.name == "z"


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="no ONNX file"):
        load_classifier(tmp_path / "absent.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(GraphError, match="not a readable ONNX model"):
        load_classifier(tmp_path / "broken.onnx")


def test_missing_external_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(classifier(), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert load_classifier(path).num_classes == 2
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(GraphError, match="missing"):
        load_classifier(path)


def test_weights_outside_the_models_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "m.onnx"
    onnx.save(classifier(), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    model = onnx.load(str(path), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../weights.bin"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="outside the model's folder"):
        load_classifier(path)


def test_logits_that_ignore_the_image_are_refused() -> None:
    model = classifier()
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Identity", ["w"], ["y"]))
    with pytest.raises(GraphError, match="do not depend on"):
        input_gradient(model)


def test_a_gradient_that_ends_at_steps_is_refused_with_their_name() -> None:
    model = classifier()
    model.graph.node[0].input[0] = "rounded"
    model.graph.node.insert(0, helper.make_node("Round", ["x"], ["rounded"], name="quantise"))
    with pytest.raises(GraphError, match=r"zero everywhere: each way leads through quantise \(Round\)"):
        input_gradient(model)


def test_a_model_that_is_read_stays_as_it_is() -> None:
    """Also one with names as this package gives them, which the copy leaves."""
    model = input_gradient(classifier())
    before = model.SerializeToString()
    load_classifier(model, Reading("logits"))
    assert model.SerializeToString() == before
