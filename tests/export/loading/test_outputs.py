"""Logits that are not (N, K), and a choice among several outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from sad_export import GraphError, defend, input_gradient, write_gradient
from sad_export.loading import Reading, load_classifier
from tests.support.graphs import Array, classifier, make, run, slope_error

IMAGES = np.random.default_rng(1).random((3, 3, 12, 12), dtype=np.float32)
Nodes, Constants = list[onnx.NodeProto], dict[str, Array]


def convolutional(nodes: Nodes, constants: Constants) -> None:
    """A classifier that ends in a 1×1 convolution, as SqueezeNet's and DenseNet's files do."""
    constants["fw"] = constants["fw"].reshape(5, 8, 1, 1)
    nodes[3:] = [make("Conv", ["g", "fw", "fb"], ["y"], name="head")]


def with_softmax(nodes: Nodes, constants: Constants) -> None:
    convolutional(nodes, constants)
    nodes[-1].output[0] = "z"
    nodes.append(make("Softmax", ["z"], ["y"], axis=1, name="softmax"))


@pytest.mark.parametrize("change", [convolutional, with_softmax])
def test_dimensions_of_length_1_are_flattened_away(change: object, tmp_path: object) -> None:
    model = classifier(change, shape=("N", 5, 1, 1))  # type: ignore[arg-type]
    with_z = classifier(convolutional)
    assert load_classifier(model).notices[-1] == "output 'y' has shape (N, 5, 1, 1) and is taken as (N, 5)"
    with pytest.warns(UserWarning):
        logits, gradient = run(input_gradient(model), IMAGES)

    def phi(x: Array) -> Array:
        return run(with_z, x)[0].reshape(len(x), -1)

    np.testing.assert_allclose(logits, phi(IMAGES), rtol=1e-4, atol=1e-5)
    assert slope_error(phi, IMAGES, gradient) < 0.02


def test_a_convolutional_classifier_is_defended(tmp_path: object) -> None:
    onnx.save(classifier(convolutional), f"{tmp_path}/forward.onnx")
    made = defend(f"{tmp_path}/forward.onnx", f"{tmp_path}/sad.onnx", eta=0.05, notice=lambda line: None)
    assert run(made.graph, IMAGES)[0].shape == (3, 5)


def test_a_map_of_logits_is_refused() -> None:
    def a_map(nodes: Nodes, constants: Constants) -> None:
        convolutional(nodes, constants)
        nodes[-1].input[0] = "r"

    with pytest.raises(GraphError, match=r"output 'y' has shape \(N, 5, 12, 12\), not \(N, K\)"):
        load_classifier(classifier(a_map))


def test_an_image_of_any_size_is_the_only_problem_that_is_named() -> None:
    """What lies behind it has no shape then, and complaining of that would hide the cause."""

    def any_size(nodes: Nodes, constants: Constants) -> None:
        constants["axes"] = np.array([2, 3])
        nodes[2:] = [
            make("ReduceMean", ["r"], ["m"], axes=[2], name="rows"),
            make("NonZero", ["m"], ["where"], name="where"),
            make("Cast", ["where"], ["z"], to=1, name="cast"),
            make("Softmax", ["z"], ["y"], name="softmax"),
        ]

    with pytest.raises(GraphError) as caught:
        load_classifier(classifier(any_size, image=("N", 3, "H", "W")))
    assert caught.value.message.endswith(
        "differentiated: input 'image' has dynamic H or W, (N, 3, H, W): --image-size H,W fixes them"
    )
    assert "the size that the network was trained on" in str(caught.value.hint)


def test_probabilities_of_unknown_shape_are_refused_by_name() -> None:
    def unknown(nodes: Nodes, constants: Constants) -> None:
        nodes[-1].output[0] = "z"
        nodes += [
            make("NonZero", ["z"], ["where"], name="where"),
            make("Cast", ["where"], ["many"], to=1, name="cast"),
            make("Compress", ["many", "ones"], ["some"], name="compress"),
            make("Softmax", ["some"], ["y"], name="softmax"),
        ]
        constants["ones"] = np.array([True, True])

    with pytest.raises(GraphError, match="is not a classifier that can be differentiated"):
        load_classifier(classifier(unknown))


def test_the_one_output_that_looks_like_logits_is_proposed() -> None:
    model = classifier()
    model.graph.output.append(onnx.helper.make_tensor_value_info("r", 1, None))
    with pytest.raises(
        GraphError, match=r"2 outputs \(y \(N, 5\), r \(N, 8, 12, 12\)\); --logits y takes one"
    ):
        load_classifier(model)
    assert load_classifier(model, Reading("y")).logits.name == "y"


@pytest.mark.parametrize("softmax", [False, True])
def test_the_output_that_follows_from_the_others_is_proposed(softmax: bool) -> None:
    """Features beside logits, or logits beside probabilities."""
    model = classifier()
    model.graph.output.append(onnx.helper.make_tensor_value_info("f", 1, None))
    if softmax:
        model.graph.node.append(make("Softmax", ["y"], ["p"], axis=1, name="softmax"))
        model.graph.output.append(onnx.helper.make_tensor_value_info("p", 1, None))
    proposed = "p" if softmax else "y"
    with pytest.raises(GraphError, match=f"--logits {proposed} takes one"):
        load_classifier(model)
    taken = load_classifier(model, Reading(proposed)).logits
    assert taken.name == "y"


def test_labels_are_told_from_logits() -> None:
    def labels(nodes: Nodes, constants: Constants) -> None:
        nodes[-1].output[0] = "z"
        nodes.append(make("ArgMax", ["z"], ["y"], axis=1, keepdims=0, name="label"))

    model = classifier(labels, shape=("N",))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    with pytest.raises(GraphError, match="output 'y' is INT64: a label, not logits"):
        load_classifier(model)
    assert load_classifier(model, Reading("z")).logits.name == "z"


def test_double_precision_is_differentiated(tmp_path: object) -> None:
    def double(nodes: Nodes, constants: Constants) -> None:
        nodes[0].input[0] = "single"
        nodes[-1].output[0] = "z"
        nodes.insert(0, make("Cast", ["image"], ["single"], to=1, name="to single"))
        nodes.append(make("Cast", ["z"], ["y"], to=11, name="to double"))

    model = classifier(double)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    onnx.save(model, f"{tmp_path}/forward.onnx")
    write_gradient(f"{tmp_path}/forward.onnx", f"{tmp_path}/gradient.onnx")
    got = run(Path(f"{tmp_path}/gradient.onnx"), IMAGES.astype(np.float64))
    expected = run(input_gradient(classifier()), IMAGES)
    assert [each.dtype for each in got] == [np.float64, np.float64]
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-4, atol=1e-5)


def test_bfloat16_images_are_refused_by_name() -> None:
    def cast(nodes: Nodes, constants: Constants) -> None:
        nodes[0].input[0] = "single"
        nodes.insert(0, make("Cast", ["image"], ["single"], to=1, name="to single"))

    model = classifier(cast)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    with pytest.raises(GraphError, match=r"input 'image' is bfloat16, .* float32 or float16"):
        load_classifier(model)


def test_operators_with_inputs_of_a_wrong_type_are_refused_in_one_line() -> None:
    model = classifier()
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    with pytest.raises(GraphError, match=r"graph '\w+' is no valid ONNX graph: .*bfloat16"):
        load_classifier(model)
