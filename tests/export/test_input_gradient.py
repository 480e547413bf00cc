"""Whole models: the gradient against float64 autograd, with a dynamic batch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from sad_deploy.models import build_model
from sad_export import GraphError, input_gradient, unsupported_nodes
from tests.support.differentiate import run
from tests.support.models import forward_onnx, randomised, small_cnn
from tests.support.torch_gradient import saliency64


def assert_saliency_equals_float64(
    model: nn.Module, size: int, *, channels: int = 3, conv_gradient: str = "auto"
) -> None:
    shape = (channels, size, size)
    graph = input_gradient(forward_onnx(model, shape), conv_gradient=conv_gradient)
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    logits, gradient = run(graph, x=x)
    want_logits, want = saliency64(model, x)
    assert (logits.argmax(1) == want_logits.argmax(1)).all()
    a, b = gradient.reshape(3, -1).astype(np.float64), want.reshape(3, -1)
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    assert cosines.min() >= 0.9999
    errors = np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)
    assert np.median(errors) <= 1e-5
    # In float32 a pre-activation near 0 may fall on the other side of its ReLU than in float64.
    assert errors.max() <= 1e-2


@pytest.mark.parametrize("conv_gradient", ["auto", "conv"])
@pytest.mark.parametrize("size", [16, 17, 31])
def test_small_cnn(size: int, conv_gradient: str) -> None:
    assert_saliency_equals_float64(small_cnn(), size, conv_gradient=conv_gradient)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [
        ("digits", 16, 1),
        ("cifar-resnet18", 32, 3),
        ("cifar-resnet50", 32, 3),
        ("cifar-wrn32-10", 32, 3),
        ("resnet18", 64, 3),
        ("resnet50", 64, 3),
        ("vgg11_bn", 224, 3),
        ("mobilenet_v2", 64, 3),
    ],
)
def test_models_of_the_paper_and_their_relatives(name: str, size: int, channels: int) -> None:
    torch.manual_seed(0)
    assert_saliency_equals_float64(randomised(build_model(name, 10)), size, channels=channels)


def test_logits_without_a_linear_layer_are_seeded_one_hot() -> None:
    model = randomised(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    )
    assert_saliency_equals_float64(model, 9)


def test_everything_without_a_rule_is_named_before_any_work() -> None:
    node = onnx.helper.make_node("Det", ["x"], ["d"], name="first")
    other = onnx.helper.make_node("DFT", ["d"], ["e"], name="second")
    flat = onnx.helper.make_node("Flatten", ["x"], ["f"])
    graph = onnx.helper.make_graph(
        [
            node,
            other,
            flat,
            onnx.helper.make_node("Flatten", ["e"], ["ee"]),
            onnx.helper.make_node("Add", ["f", "ee"], ["y"]),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["N", 1, 3, 3])],
        [onnx.helper.make_tensor_value_info("y", 1, ["N", 9])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    assert [line.partition(":")[0] for line in unsupported_nodes(model)] == ["first", "second"]
    with pytest.raises(
        GraphError, match=r"2 nodes cannot be differentiated: first.*Det.*second.*DFT"
    ) as caught:
        input_gradient(model)
    assert "@vjp" in str(caught.value.hint)
