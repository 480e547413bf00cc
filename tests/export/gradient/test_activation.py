"""Activations against PyTorch, at random points and at their kinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.differentiate import check, forward_model, gradient, gradient_model, node, run
from tests.support.torch_gradient import assert_equals_autograd

RNG = np.random.default_rng(5)
X = 3 * RNG.normal(size=(2, 3, 40))

Function = Callable[[torch.Tensor], torch.Tensor]
ACTIVATIONS: dict[str, tuple[str, dict[str, Any], Function, list[float]]] = {
    "Relu": ("Relu", {}, F.relu, [0]),
    "LeakyRelu": ("LeakyRelu", {"alpha": 0.2}, lambda x: F.leaky_relu(x, 0.2), [0]),
    "LeakyRelu, negative slope": ("LeakyRelu", {"alpha": -0.2}, lambda x: F.leaky_relu(x, -0.2), [0]),
    "Elu": ("Elu", {"alpha": 0.7}, lambda x: F.elu(x, 0.7), [0]),
    "Selu": ("Selu", {}, F.selu, [0]),
    "Celu": ("Celu", {"alpha": 0.7}, lambda x: F.celu(x, 0.7), [0]),
    "ThresholdedRelu": ("ThresholdedRelu", {"alpha": 1.5}, lambda x: F.threshold(x, 1.5, 0.0), [1.5]),
    "ThresholdedRelu, negative threshold": (
        "ThresholdedRelu",
        {"alpha": -0.5},
        lambda x: F.threshold(x, -0.5, 0.0),
        [-0.5, 0],
    ),
    "Shrink, hard": ("Shrink", {"lambd": 0.5}, lambda x: F.hardshrink(x, 0.5), [-0.5, 0.5]),
    "Shrink, soft": (
        "Shrink",
        {"lambd": 0.5, "bias": 0.5},
        lambda x: F.softshrink(x, 0.5),
        [-0.5, 0.5],
    ),
    "Sigmoid": ("Sigmoid", {}, torch.sigmoid, []),
    "HardSigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, F.hardsigmoid, [-3, 3]),
    "HardSwish": ("HardSwish", {}, F.hardswish, [-3, 3]),
    "Softplus": ("Softplus", {}, F.softplus, []),
    "Softsign": ("Softsign", {}, F.softsign, [0]),
    "Tanh": ("Tanh", {}, torch.tanh, []),
    "Erf": ("Erf", {}, torch.erf, []),
    "Gelu": ("Gelu", {}, F.gelu, []),
    "Gelu, tanh": ("Gelu", {"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh"), [-30, 30]),
    "Mish": ("Mish", {}, F.mish, [-30, 30]),
    "Softmax": ("Softmax", {"axis": 1}, lambda x: x.softmax(1), []),
    "LogSoftmax": ("LogSoftmax", {}, lambda x: x.log_softmax(-1), []),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_equals_float64_autograd(name: str) -> None:
    op_type, attributes, function, _ = ACTIVATIONS[name]
    assert_equals_autograd([node(op_type, **attributes)], function, X)


@pytest.mark.parametrize("name", [name for name, (*_, kinks) in ACTIVATIONS.items() if kinks])
def test_activation_takes_the_side_of_pytorch_at_its_kinks(name: str) -> None:
    op_type, attributes, function, kinks = ACTIVATIONS[name]
    assert_equals_autograd([node(op_type, **attributes)], function, np.array([kinks], dtype=np.float64))


@pytest.mark.parametrize("alpha", [0.0, -0.7])
def test_elu_without_a_slope_of_its_own_sign(alpha: float) -> None:
    check([node("Elu", alpha=alpha)], (2, 3, 4))


def test_swish_with_a_slope() -> None:
    x = RNG.normal(size=(2, 3, 4))
    assert_equals_autograd([node("Swish", alpha=1.5)], lambda x: x * torch.sigmoid(1.5 * x), x, opset=24)


def test_prelu_with_one_slope_a_channel() -> None:
    slope = RNG.uniform(-0.5, 0.5, size=(3, 1))
    assert_equals_autograd(
        [node("PRelu", ["x", "s"])], lambda x: F.prelu(x, torch.tensor(slope[:, 0])), X, {"s": slope}
    )


def test_prelu_whose_slope_is_computed() -> None:
    check([node("Sin", ["x"], ["s"]), node("PRelu", ["x", "s"])], (2, 3, 4))


def test_clip_gives_its_computed_bounds_what_x_loses() -> None:
    """The bounds are the smallest and the largest of x, halved: gradients flow through all three inputs."""
    nodes = [
        node("Mul", ["x", "half"], ["h"]),
        node("ReduceMin", ["h"], ["low"], keepdims=0),
        node("ReduceMax", ["h"], ["high"], keepdims=0),
        node("Clip", ["x", "low", "high"]),
    ]
    x = RNG.normal(size=(1, 12))
    forward = forward_model(nodes, [1, 12], {"half": np.array([0.5])})
    (dx,) = run(gradient_model(forward), x=x.astype(np.float32), dy=np.ones((1, 12), np.float32))[1:]
    xt = torch.tensor(x, requires_grad=True)
    torch.minimum(torch.maximum(xt, xt.min() / 2), xt.max() / 2).sum().backward()
    np.testing.assert_allclose(dx, xt.grad, rtol=1e-5)


def test_activations_after_a_convolution_are_differentiated_from_their_output() -> None:
    """Nothing but the activation reads the convolution, so that a runtime can fuse the two."""
    for op_type in (
        "Relu",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Celu",
        "Sigmoid",
        "HardSigmoid",
        "Tanh",
        "ThresholdedRelu",
    ):
        nodes = [node("Conv", ["x", "w"], ["c"]), node(op_type, ["c"])]
        model = gradient_model(forward_model(nodes, ["N", 2, 5, 5], {"w": RNG.normal(size=(3, 2, 3, 3))}))
        assert [n.op_type for n in model.graph.node if "c" in n.input] == [op_type]


def test_gelu_survives_half_precision_overflow() -> None:
    dx = gradient([node("Gelu", approximate="tanh")], np.array([[-300.0, 300.0, 6e4]]), np.ones((1, 3)))
    np.testing.assert_array_equal(dx, [[0, 1, 1]])


@pytest.mark.parametrize("order", [["x", "s"], ["s", "x"]])
def test_x_times_its_sigmoid_is_differentiated_as_one_function(order: list[str]) -> None:
    nodes = [node("Sigmoid", ["x"], ["s"]), node("Mul", order)]
    far = np.concatenate([X.ravel(), [-100.0, -20.0, 17.0, 20.0, 1e4]]).reshape(1, -1)
    assert_equals_autograd(nodes, F.silu, far)
    backward = gradient_model(forward_model(nodes, ["N", 4])).graph.node[2:]
    assert [n.op_type for n in backward] == ["Sub", "Add", "Mul", "Mul"]


def test_a_sigmoid_that_is_also_used_elsewhere_keeps_its_own_gradient() -> None:
    nodes = [node("Sigmoid", ["x"], ["s"]), node("Mul", ["x", "s"], ["p"]), node("Add", ["p", "s"])]
    assert_equals_autograd(nodes, lambda x: F.silu(x) + torch.sigmoid(x), X)
