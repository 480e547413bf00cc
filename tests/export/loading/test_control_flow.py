"""Ifs, constants and copies that only look as if they were computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from sad_export import GraphError, input_gradient, write_gradient
from sad_export.loading import load_classifier
from tests.support.graphs import Array, classifier, make, run, slope_error

IMAGES = np.random.default_rng(1).random((3, 3, 12, 12), dtype=np.float32)
Nodes, Constants = list[onnx.NodeProto], dict[str, Array]


def assert_right(model: onnx.ModelProto, reference: onnx.ModelProto | None = None) -> None:
    logits, gradient = run(input_gradient(model), IMAGES)
    reference = reference or model
    np.testing.assert_allclose(logits, run(reference, IMAGES)[0].reshape(3, -1), rtol=1e-4, atol=1e-5)
    assert slope_error(lambda x: run(reference, x)[0].reshape(len(x), -1), IMAGES, gradient) < 0.02


def branch(*nodes: onnx.NodeProto, name: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), name, [], [output])


def squeezed(nodes: Nodes, constants: Constants, *, last: bool = False) -> None:
    """torch's older exporter asks whether there is a dimension to squeeze."""
    constants |= {"one": np.array(1), "axes": np.array([2, 3]), "at": np.array(2)}
    two = make("Constant", [], ["two"], value=onnx.numpy_helper.from_array(np.array(2, np.float32)))
    inner = helper.make_node(
        "If",
        ["asked"],
        ["deep"],
        name="inner",
        then_branch=branch(make("Mul", ["s", "two"], ["m"], name="double"), name="deeper"),
        else_branch=branch(make("Identity", ["s"], ["e"]), name="deepest"),
    )
    kept = branch(make("Identity", ["g"], ["e"]), name="else")
    then = branch(make("Squeeze", ["g", "axes"], ["s"], name="squeeze"), two, inner, name="then")
    nodes[3:4] = [
        make("Shape", ["g"], ["shape"]),
        make("Gather", ["shape", "at"], ["length"]),
        make("Equal", ["length", "one"], ["asked"]),
        make("If", ["asked"], ["f"], name="if", then_branch=then, else_branch=kept),
    ]


def test_an_if_that_the_shapes_answer_is_its_branch() -> None:
    """One within the other, with constants of its own."""
    assert_right(classifier(squeezed))


def test_an_if_whose_result_is_the_output_leaves_the_outputs_name() -> None:
    def at_the_end(nodes: Nodes, constants: Constants) -> None:
        constants["yes"] = np.array(True)
        nodes[-1].output[0] = "z"
        made = branch(make("Identity", ["z"], ["e"]), name="else")
        doubled = branch(make("Add", ["z", "z"], ["d"], name="double"), name="then")
        nodes.append(make("If", ["yes"], ["y"], name="if", then_branch=doubled, else_branch=made))

    assert load_classifier(classifier(at_the_end)).logits.name == "y"
    assert_right(classifier(at_the_end))


def test_an_if_that_the_image_decides_is_refused() -> None:
    def asked(nodes: Nodes, constants: Constants) -> None:
        constants["zero"] = np.array(0, np.float32)
        nodes[-1].output[0] = "z"
        nodes += [
            make("ReduceMax", ["z"], ["most"], keepdims=0),
            make("Greater", ["most", "zero"], ["asked"]),
            make(
                "If", ["asked"], ["y"], name="if",
                then_branch=branch(make("Neg", ["z"], ["n"]), name="then"),
                else_branch=branch(make("Identity", ["z"], ["e"]), name="else"),
            ),
        ]  # fmt: skip

    with pytest.raises(GraphError, match=r"control flow \(If\)"):
        load_classifier(classifier(asked))


def test_a_constant_that_borrows_its_type_from_the_image_is_a_constant() -> None:
    """The bias of every convolution without one, in torch's unoptimised exports."""

    def bias(nodes: Nodes, constants: Constants) -> None:
        constants |= {"zero": np.zeros(1, np.int64), "eight": np.array([8])}
        nodes[0].input[2] = "bias"
        nodes.insert(0, make("CastLike", ["zero", "image"], ["z"], name="castlike"))
        nodes.insert(1, make("Expand", ["z", "eight"], ["bias"], name="expand"))

    assert_right(classifier(bias))


def test_a_constant_that_borrows_its_shape_is_a_constant() -> None:
    def weight(nodes: Nodes, constants: Constants) -> None:
        """An identity of the head's width, times a weight that a Size gives."""
        nodes[-1].input[1] = "fe"
        nodes.insert(0, make("EyeLike", ["square"], ["eye"], k=1))
        nodes.insert(1, make("Size", ["image_row"], ["size"]))
        nodes.insert(2, make("Cast", ["size"], ["scale"], to=1))
        nodes.insert(3, make("Mul", ["eye", "scale"], ["e"]))
        nodes.insert(4, make("MatMul", ["fw", "e"], ["fe"]))
        constants |= {"square": np.zeros((8, 8), np.float32), "image_row": np.zeros(3, np.float32)}

    assert_right(classifier(weight))


LEVELS = onnxruntime.GraphOptimizationLevel


def optimised(model: onnx.ModelProto, path: Path, level: LEVELS) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def activated(*activation: onnx.NodeProto) -> onnx.ModelProto:
    def change(nodes: Nodes, constants: Constants) -> None:
        nodes[1:2] = activation
        constants |= {
            "low": np.array(0.1, np.float32),
            "high": np.array(1.5, np.float32),
            "root": np.array(2**0.5, np.float32),
        }
        constants |= {
            "one": np.array(1, np.float32),
            "half": np.array(0.5, np.float32),
            "q": np.array(1.702, np.float32),
        }

    return classifier(change)


FUSED = {
    "Relu": [make("Relu", ["c"], ["r"])],
    "LeakyRelu": [make("LeakyRelu", ["c"], ["r"], alpha=0.3)],
    "Clip": [make("Clip", ["c", "low", "high"], ["r"])],
    "HardSigmoid": [make("HardSigmoid", ["c"], ["r"], alpha=0.1, beta=0.4)],
    "Sigmoid": [make("Sigmoid", ["c"], ["r"])],
    "Tanh": [make("Tanh", ["c"], ["r"])],
    "Gelu": [
        make("Div", ["c", "root"], ["d"]), make("Erf", ["d"], ["e"]), make("Add", ["e", "one"], ["a"]),
        make("Mul", ["c", "a"], ["m"]), make("Mul", ["m", "half"], ["r"]),
    ],
    "QuickGelu": [
        make("Mul", ["c", "q"], ["s"]), make("Sigmoid", ["s"], ["sig"]), make("Mul", ["c", "sig"], ["r"]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_what_onnxruntime_fused_is_written_out(name: str, tmp_path: Path) -> None:
    model = activated(*FUSED[name])
    optimised(model, tmp_path / "o.onnx", LEVELS.ORT_ENABLE_EXTENDED)
    copy = onnx.load(tmp_path / "o.onnx")
    assert {node.domain for node in copy.graph.node} & {"com.microsoft"}
    said: list[str] = []
    write_gradient(tmp_path / "o.onnx", tmp_path / "g.onnx", notice=said.append)
    assert said[0].startswith("the graph is a copy that onnxruntime optimised; ")
    assert_right(copy, model)


def test_the_other_fused_operators_are_written_out() -> None:
    """FusedConv with its sum, FusedGemm, FusedMatMul and the rest, as other devices have them."""

    def fused(nodes: Nodes, constants: Constants) -> None:
        own, leaky = {"domain": "com.microsoft"}, {"activation": "LeakyRelu", "activation_alpha": 0.2}
        constants["w2"] = np.tile(constants["w"], (1, 3, 1, 1))[:, :8]
        constants |= {"bias": np.linspace(-1, 1, 12, dtype=np.float32), "m": constants["fw"].copy()}
        constants["fw"], constants["fb"] = np.eye(8, 8, 1, np.float32), np.zeros(8, np.float32)
        nodes[2:] = [
            make("FusedConv", ["r", "w2", "b", "c"], ["c2"], pads=[1] * 4, activation="Relu", **own),
            make("BiasGelu", ["c2", "bias"], ["bg"], name="bg", **own),
            make("FastGelu", ["bg", "bias"], ["fg"], name="fg", **own),
            make("GlobalAveragePool", ["fg"], ["g"], name="pool"),
            make("Flatten", ["g"], ["f"], name="flatten"),
            make("FusedGemm", ["f", "fw", "fb"], ["h"], **leaky, name="fused_gemm", **own),
            make("FusedMatMul", ["h", "m"], ["y"], transB=1, alpha=0.3, name="fm", **own),
        ]  # fmt: skip

    model = classifier(fused)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    assert_right(model)


def test_a_copy_in_onnxruntimes_layout_is_refused_in_one_line(tmp_path: Path) -> None:
    def wide(nodes: Nodes, constants: Constants) -> None:
        constants["w"], constants["b"] = np.tile(constants["w"], (4, 1, 1, 1)), np.tile(constants["b"], 4)
        constants["fw"] = np.tile(constants["fw"], (1, 4))

    optimised(classifier(wide), tmp_path / "o.onnx", LEVELS.ORT_ENABLE_ALL)
    with pytest.raises(GraphError, match="onnxruntime optimised, with operators of its own") as caught:
        load_classifier(tmp_path / "o.onnx")
    assert caught.value.hint == "give the file that it was made from"
