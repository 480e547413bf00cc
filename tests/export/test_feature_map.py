"""Where ``--at`` takes a gradient: named values, and the last feature map of each kind of network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from sad_export import GraphError, input_gradient
from sad_export.feature_map import last_feature_map, value_at
from sad_export.loading import Reading, load_classifier
from tests.support.differentiate import Array, run
from tests.support.graphs import classifier, make
from tests.support.models import forward_onnx, small_cnn

IMAGES = np.random.default_rng(0).random((4, 3, 16, 16), dtype=np.float32)


def through(model: nn.Sequential, layers: int) -> tuple[Array, Array]:
    """The output of the first layers, and the gradient of the largest logit there."""
    wide = model.double()
    activation = wide[:layers](torch.from_numpy(IMAGES).double()).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(wide[layers:](activation).max(1).values.sum(), activation)
    model.float()
    return activation.detach().numpy(), gradient.numpy()


@pytest.mark.parametrize("target", ["portable", "cpu"])
@pytest.mark.parametrize(
    ("at", "layers"),
    [("relu", 3), ("node_max_pool2d", 4), ("relu_2", 5), ("last", 5), ("mean", 6), ("view", 7)],
)
def test_the_gradient_at_a_value_is_autograds(at: str, layers: int, target: str) -> None:
    model = small_cnn()
    assert isinstance(model, nn.Sequential)
    graph = input_gradient(forward_onnx(model), at=at, target=target, notice=lambda line: None)
    assert [value.name for value in graph.graph.output] == ["logits", "activation", "gradient"]
    logits, activation, gradient = run(graph, x=IMAGES)
    want_activation, want = through(model, layers)
    np.testing.assert_allclose(logits, model(torch.from_numpy(IMAGES)).detach(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(activation, want_activation, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, want.reshape(gradient.shape), rtol=1e-3, atol=1e-6)


def test_what_last_took_is_said() -> None:
    said: list[str] = []
    input_gradient(forward_onnx(small_cnn()), at="last", notice=said.append)
    assert said == ["the last feature map is relu_2 (N, 8, 4, 4)"]


@pytest.mark.parametrize(
    ("at", "message", "hint"),
    [
        ("rleu_1", "the graph has no value 'rleu_1'", "near it: relu_1, "),
        ("quite another", "the graph has no value 'quite another'", "--at last"),
        ("logits", "'logits' does not lie between the image and the logits", "--at last"),
        ("x", "'x' does not lie between", "--at last"),
    ],
)
def test_a_name_that_is_not_there_is_one_line_with_near_ones(at: str, message: str, hint: str) -> None:
    with pytest.raises(GraphError) as caught:
        input_gradient(forward_onnx(small_cnn()), at=at)
    assert caught.value.message.startswith(message)
    assert str(caught.value.hint).startswith(hint)


def found(model: onnx.ModelProto) -> str:
    return str(last_feature_map(load_classifier(model)).name)


def vgg(nodes: list[onnx.NodeProto], constants: dict[str, Array]) -> None:
    """Max-pooled and flattened, without a global pool."""
    nodes[2] = make("MaxPool", ["r"], ["g"], kernel_shape=[2, 2], strides=[2, 2])
    constants["fw"] = np.random.default_rng(0).standard_normal((5, 288)).astype(np.float32)


def squeeze_excite(nodes: list[onnx.NodeProto], constants: dict[str, Array]) -> None:
    """The first pooling belongs to a block."""
    constants["ew"] = np.random.default_rng(0).standard_normal((8, 8, 1, 1)).astype(np.float32)
    nodes[2:3] = [
        make("GlobalAveragePool", ["r"], ["s"]),
        make("Conv", ["s", "ew"], ["e"]),
        make("Sigmoid", ["e"], ["gate"]),
        make("Mul", ["r", "gate"], ["scaled"]),
        make("GlobalAveragePool", ["scaled"], ["g"]),
    ]


def excite_alone(nodes: list[onnx.NodeProto], constants: dict[str, Array]) -> None:
    """The only pooling belongs to a block, and the rest is a sequence of tokens."""
    squeeze_excite(nodes, constants)
    nodes[6:8] = [
        make("Reshape", ["scaled", "tokens"], ["t"]),
        make("Gather", ["t", "first"], ["f"], axis=2),
    ]
    constants |= {"tokens": np.array([0, 8, 144]), "first": np.array(0)}


@pytest.mark.parametrize(
    ("change", "name"), [(None, "r"), (vgg, "r"), (squeeze_excite, "scaled")], ids=["pool", "vgg", "se"]
)
def test_the_last_map_is_what_the_head_reads(
    change: Callable[[list[onnx.NodeProto], dict[str, Array]], None] | None, name: str
) -> None:
    assert found(classifier(change)) == name


def test_a_network_of_tokens_has_none_whatever_it_pools_before() -> None:
    with pytest.raises(GraphError, match=r"no feature map .* networks of tokens, such as ViT") as caught:
        found(classifier(excite_alone))
    assert "--at NAME" in str(caught.value.hint)


def test_one_position_with_its_channels_last_is_no_map_after_the_pooling() -> None:
    """ConvNeXt normalises what it has pooled so."""

    def change(nodes: list[onnx.NodeProto], _: dict[str, Array]) -> None:
        nodes[3:4] = [
            make("Transpose", ["g"], ["t"], perm=[0, 2, 3, 1]),
            make("Tanh", ["t"], ["u"]),
            make("Flatten", ["u"], ["f"]),
        ]

    assert found(classifier(change)) == "r"


def test_a_mean_over_both_sides_is_a_pooling() -> None:
    def change(nodes: list[onnx.NodeProto], _: dict[str, Array]) -> None:
        nodes[2:4] = [make("ReduceMean", ["r"], ["f"], axes=[2, 3], keepdims=0)]

    assert found(classifier(change)) == "r"


def test_channels_last_is_not_taken_for_a_map() -> None:
    """(N, h, w, C), whose mean over h and w has C numbers."""

    def change(nodes: list[onnx.NodeProto], _: dict[str, Array]) -> None:
        nodes[2:4] = [
            make("Transpose", ["r"], ["t"], perm=[0, 2, 3, 1]),
            make("ReduceMean", ["t"], ["f"], axes=[1, 2], keepdims=0),
        ]

    with pytest.raises(GraphError, match="no feature map"):
        found(classifier(change))


def test_a_value_that_no_logit_depends_on_is_none_between() -> None:
    """What an If left over, for example: it is in the file and leads nowhere."""
    model = classifier()
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "one"))
    model.graph.node.append(helper.make_node("Add", ["c", "one"], ["aside"]))
    model.graph.output.append(helper.make_tensor_value_info("aside", TensorProto.FLOAT, None))
    graph = load_classifier(model, Reading("y"))
    with pytest.raises(GraphError, match=r"'aside'"):
        value_at(graph, "aside", lambda line: None)


def swish(nodes: list[onnx.NodeProto], _: dict[str, Array]) -> None:
    """c·σ(c), which has one rule for both nodes."""
    nodes[1:2] = [make("Sigmoid", ["c"], ["s"]), make("Mul", ["c", "s"], ["r"])]


def test_no_rule_of_several_nodes_steps_over_the_value() -> None:
    """The gradient at σ(c) is that of c·σ(c) times c."""
    images = np.random.default_rng(0).random((2, 3, 12, 12), dtype=np.float32)
    inner, after, before = (
        run(input_gradient(classifier(swish), at=at), image=images) for at in ("s", "r", "c")
    )
    np.testing.assert_allclose(inner[2], after[2] * before[1], rtol=1e-5)
