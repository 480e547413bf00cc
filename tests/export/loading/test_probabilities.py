"""A graph that ends in probabilities: S is taken of the logits before them, or it is refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from sad_export import input_gradient, two_pass
from sad_export.defend import defend
from sad_export.graph.errors import GraphError
from sad_export.two_pass import Defence
from sad_export.verify import VerificationError
from sad_export.verify_forward import ForwardVerification, verify_forward
from sad_export.verify_gradient import verify_gradient
from sad_runtime.prediction import kind_of_probabilities, softmax

Array = np.ndarray[Any, Any]
Node = onnx.NodeProto
make = helper.make_node
IMAGES = np.random.default_rng(1).random((5, 3, 12, 12), dtype=np.float32)


def classifier(*tail: Node, classes: int = 5, rank: int = 2, output: str | None = None) -> onnx.ModelProto:
    """Conv, Relu, pool, 1×1 Conv, (Flatten) → z, so sharp that its softmax is 0 or 1; then the tail."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((8, 3, 3, 3)) * 0.5,
        "v": rng.standard_normal((classes, 8, 1, 1)) * 300,
        "hundred": np.array(100.0),
        "low": np.array(1e-7),
        "axis": np.array([1]),
        "flat": np.array([0, classes]),
    }
    nodes = [
        make("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        make("Relu", ["c"], ["r"], name="relu"),
        make("GlobalAveragePool", ["r"], ["g"], name="pool"),
        make("Conv", ["g", "v"], ["z" if rank == 4 else "z4"], name="head"),
    ]
    if rank == 2:
        nodes.append(make("Flatten", ["z4"], ["z"], name="flatten"))
    nodes += tail
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, 12, 12])],
        [helper.make_tensor_value_info(output or nodes[-1].output[0], onnx.TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(array.astype(np.float32 if array.dtype.kind == "f" else np.int64), name)
            for name, array in weights.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, images: Array = IMAGES) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


TAILS = {
    "softmax": [make("Softmax", ["z"], ["p"], axis=1, name="softmax")],
    "softmax on the last axis": [make("Softmax", ["z"], ["p"], name="softmax")],
    "log-softmax": [make("LogSoftmax", ["z"], ["p"], name="softmax")],
    "log of softmax": [make("Softmax", ["z"], ["q"]), make("Log", ["q"], ["p"])],
    "clipped": [make("Softmax", ["z"], ["q"]), make("Clip", ["q", "low"], ["p"])],
    "percent": [make("Softmax", ["z"], ["q"]), make("Mul", ["q", "hundred"], ["p"])],
    "identity": [make("Softmax", ["z"], ["q"]), make("Identity", ["q"], ["p"])],
    "written out": [
        make("Exp", ["z"], ["e"]),
        make("ReduceSum", ["e", "axis"], ["s"]),
        make("Div", ["e", "s"], ["p"]),
    ],
    "written out, less its maximum": [
        make("ReduceMax", ["z"], ["m"], axes=[1]),
        make("Sub", ["z", "m"], ["d"]),
        make("Exp", ["d"], ["e"]),
        make("ReduceSum", ["e", "axis"], ["s"]),
        make("Div", ["e", "s"], ["p"]),
    ],
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_gradient_is_that_of_the_logits_and_says_so(tail: list[Node], tmp_path: Path) -> None:
    expected = run(input_gradient(classifier()))
    said: list[str] = []
    got = run(input_gradient(classifier(*tail), notice=said.append))
    np.testing.assert_allclose(got["gradient"], expected["gradient"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["logits"], expected["logits"], rtol=1e-4)
    assert len(said) == 1
    assert "probabilities" in said[0]
    assert "softmax" in said[0].lower()


@pytest.mark.parametrize("end", [[make("Flatten", ["q"], ["p"])], [make("Reshape", ["q", "flat"], ["p"])]])
def test_what_only_moves_probabilities_moves_the_logits(end: list[Node]) -> None:
    expected = run(input_gradient(classifier()))
    model = classifier(make("Softmax", ["z"], ["q"], axis=1), *end, rank=4)
    got = run(input_gradient(model, notice=lambda message: None))
    np.testing.assert_allclose(got["gradient"], expected["gradient"], rtol=1e-4, atol=1e-5)
    assert got["logits"].shape == (5, 5)


def test_two_pass_graph_of_probabilities_has_the_files_own_probabilities(tmp_path: Path) -> None:
    model = classifier(*TAILS["softmax"])
    got = run(two_pass(model, eta=0.0, notice=lambda message: None))
    np.testing.assert_allclose(softmax(got["plain_logits"]), run(model)["p"], atol=1e-5)
    np.testing.assert_allclose(got["logits"], got["plain_logits"], rtol=1e-5)


def test_one_sigmoid_is_two_classes_whose_softmax_is_its_probability() -> None:
    model = classifier(make("Sigmoid", ["z"], ["p"], name="sigmoid"), classes=1)
    said: list[str] = []
    got = run(input_gradient(model, notice=said.append))
    p = run(model)["p"]
    np.testing.assert_allclose(softmax(got["logits"]), np.hstack([1 - p, p]), atol=1e-6)
    assert "Sigmoid" in said[0]
    assert "two classes" in said[0]
    # Of either class it is ±1/2 of the slope of z.
    z = run(input_gradient(classifier(make("Concat", ["z", "z"], ["y"], axis=1), classes=1)))["gradient"]
    sign = np.where(got["logits"][:, 1] > 0, 1, -1)[:, None, None, None]
    np.testing.assert_allclose(got["gradient"], sign * z / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [("rest", "s"), ("s", "rest")])
def test_both_probabilities_of_one_sigmoid_are_two_classes_in_their_order(order: tuple[str, str]) -> None:
    tail = (
        make("Sigmoid", ["z"], ["s"]),
        make("Constant", [], ["one"], value_float=1.0),
        make("Sub", ["one", "s"], ["rest"]),
        make("Concat", list(order), ["p"], axis=1),
    )
    model = classifier(*tail, classes=1)
    with pytest.warns(UserWarning, match="two classes"):
        got = run(input_gradient(model))
    np.testing.assert_allclose(softmax(got["logits"]), run(model)["p"], atol=1e-6)


@pytest.mark.parametrize("moved", ["before", "after"])
def test_one_sigmoid_without_a_dimension_of_classes(moved: str) -> None:
    squeeze = make("Squeeze", ["z", "axis"], ["zs"]), make("Sigmoid", ["zs"], ["p"])
    if moved == "after":
        squeeze = make("Sigmoid", ["z"], ["s"]), make("Squeeze", ["s", "axis"], ["p"])
    model = classifier(*squeeze, classes=1)
    with pytest.warns(UserWarning, match="two classes"):
        got = run(input_gradient(model))
    p = run(model)["p"][:, None]
    assert p.shape == (5, 1)
    np.testing.assert_allclose(softmax(got["logits"]), np.hstack([1 - p, p]), atol=1e-6)


def test_one_value_without_a_sigmoid_is_refused_with_what_would_do() -> None:
    with pytest.raises(GraphError, match=r"has one logit; .* where the graph ends in the Sigmoid"):
        input_gradient(classifier(classes=1))


def test_sigmoid_of_several_values_is_refused_by_name_and_its_input_may_be_named() -> None:
    model = classifier(make("Sigmoid", ["z"], ["p"], name="sigmoid"))
    with pytest.raises(GraphError, match=r"Sigmoid 'sigmoid' of 5 values.*multi-label.*--logits z"):
        input_gradient(model)
    got = run(input_gradient(model, logits="z"))
    np.testing.assert_allclose(got["gradient"], run(input_gradient(classifier()))["gradient"], rtol=1e-5)


def test_hard_sigmoids_are_refused_by_name() -> None:
    for classes, reason in ((4, r"HardSigmoid 'hard' of 4 values.*multi-label"), (1, "which no logit has")):
        model = classifier(make("HardSigmoid", ["z"], ["p"], name="hard"), classes=classes)
        with pytest.raises(GraphError, match=reason):
            input_gradient(model)


def test_softmax_over_the_batch_is_refused() -> None:
    with pytest.raises(GraphError, match="over the images of a batch"):
        input_gradient(classifier(make("Softmax", ["z"], ["p"], axis=0)))


def test_softmax_over_an_axis_of_length_one_is_refused() -> None:
    model = classifier(make("Softmax", ["z"], ["q"], axis=-1), make("Flatten", ["q"], ["p"]), rank=4)
    with pytest.raises(GraphError, match="over an axis of length 1"):
        input_gradient(model)


def test_logits_stay_as_they_are_and_nothing_is_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        input_gradient(classifier())
    clipped = classifier(make("Clip", ["z", "low"], ["y"]))
    assert "Clip" in [node.op_type for node in input_gradient(clipped).graph.node]


def test_python_caller_is_warned_at_the_call() -> None:
    with pytest.warns(UserWarning, match="probabilities") as caught:
        input_gradient(classifier(*TAILS["softmax"]))
    assert caught[0].filename == __file__


def test_export_of_probabilities_is_verified_against_the_files_own_logits(tmp_path: Path) -> None:
    forward = tmp_path / "probabilities.onnx"
    onnx.save(classifier(*TAILS["softmax"]), forward)
    said: list[str] = []
    made = defend(forward, tmp_path / "sad.onnx", eta=0.05, notice=said.append)
    assert made.verification.slope_error < 0.05
    assert made.verification.zero_saliencies == 0
    assert len(said) == 1


HIDDEN = [
    make("ReduceMax", ["z"], ["m"], axes=[1]),
    make("Sub", ["z", "m"], ["d"]),
    make("Exp", ["d"], ["e"]),
    make("ReduceSum", ["e", "axis"], ["s"]),
    make("Reciprocal", ["s"], ["t"]),
    make("Mul", ["e", "t"], ["p"]),
]


def test_probabilities_in_an_unknown_form_are_found_on_data(tmp_path: Path) -> None:
    forward, graph = tmp_path / "hidden.onnx", tmp_path / "gradient.onnx"
    onnx.save(classifier(*HIDDEN), forward)
    onnx.save(input_gradient(forward), graph)
    with pytest.raises(VerificationError, match="gives probabilities, not logits") as caught:
        verify_gradient(graph, forward)
    assert caught.value.hint is not None
    assert "--logits NAME" in caught.value.hint
    onnx.save(input_gradient(forward, logits="z"), graph)
    verify_gradient(graph, forward, logits="z")


def test_saliency_of_zero_on_most_images_is_not_verified(tmp_path: Path) -> None:
    """Logits behind a ReLU that is dead for most images: every figure but the count is right."""
    forward, graph = tmp_path / "dead.onnx", tmp_path / "sad.onnx"
    model = classifier(make("Sub", ["z", "shift"], ["y"]), make("Relu", ["y"], ["logits"]))
    z = run(classifier())["z"].max(axis=1)
    for alive, images in ((5, IMAGES), (1, IMAGES[np.argsort(z)])):
        shift = np.float32(z.min() - 1 if alive == 5 else np.sort(z)[-2:].mean())
        constant = numpy_helper.from_array(shift, "shift")
        del model.graph.initializer[6:]
        model.graph.initializer.append(constant)
        onnx.save(model, forward)
        onnx.save(two_pass(forward, eta=0.0), graph)
        if alive == 5:
            figures = check(graph, forward, images)
            assert figures.zero_saliencies == 0
        else:
            with pytest.raises(VerificationError, match="saliency of 4 of 5 images is zero"):
                check(graph, forward, images)


def check(graph: Path, forward: Path, images: Array) -> ForwardVerification:
    return verify_forward(graph, forward, images, Defence(0.0))


def test_kind_is_told_from_several_rows() -> None:
    p = softmax(np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32))
    assert kind_of_probabilities(p) == "probabilities"
    assert kind_of_probabilities(np.log(p)) == "logarithms of probabilities"
    assert kind_of_probabilities(p.astype(np.float16)) == "probabilities"
    assert kind_of_probabilities(p * 1.01) is None
    assert kind_of_probabilities(p - 0.1) is None
    assert kind_of_probabilities(np.zeros((4, 5))) is None
    assert kind_of_probabilities(np.ones((4, 1))) is None
    assert kind_of_probabilities(np.full((4, 5), np.nan)) is None
