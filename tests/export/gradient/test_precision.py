"""Casts and quantisation: straight through, with zero where a value is saturated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto

from tests.support.differentiate import check, forward_model, gradient, gradient_model, node, run
from tests.support.torch_gradient import assert_equals_autograd

RNG = np.random.default_rng(23)


@pytest.mark.parametrize("zero", [0, 10])
def test_quantisation_equals_pytorchs_fake_quantisation(zero: int) -> None:
    scale = 0.05
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"])]

    def fake(x: torch.Tensor) -> torch.Tensor:
        # PyTorch's own takes float32 only; its gradient is that of clamping to the range.
        return torch.clamp(x, (-128.5 - zero) * scale, (127.5 - zero) * scale)

    constants = {"s": np.array(scale), "z": np.array(zero, dtype=np.int8)}
    assert_equals_autograd(nodes, fake, RNG.normal(scale=6, size=(2, 3, 40)), constants)


def test_quantisation_by_channel() -> None:
    scale = np.array([0.01, 0.02, 0.04])
    constants = {"s": scale, "z": np.zeros(3, dtype=np.uint8)}
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1),
        node("DequantizeLinear", ["q", "s", "z"], axis=1),
    ]
    x = np.full((1, 3, 2), 4.0)
    x[:, :, 1] = -1.0
    dx = gradient(nodes, x, np.ones((1, 3, 2)), constants)
    np.testing.assert_array_equal(dx[0], [[0, 0], [1, 0], [1, 0]])


def test_quantised_integers_may_be_moved_between_the_two() -> None:
    constants = {"s": np.array(0.05), "z": np.array(0, dtype=np.int8), "shape": np.array([0, 12])}
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("Transpose", ["q"], ["t"], perm=[0, 2, 1]),
        node("Reshape", ["t", "shape"], ["r"]),
        node("DequantizeLinear", ["r", "s", "z"]),
    ]
    dy = RNG.normal(size=(2, 12)).astype(np.float32)
    dx = gradient(nodes, RNG.normal(size=(2, 3, 4)), dy, constants)
    np.testing.assert_array_equal(dx, dy.reshape(2, 4, 3).transpose(0, 2, 1))


def test_cast_to_half_and_back() -> None:
    nodes = [
        node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        node("Mul", ["h", "h"], ["m"]),
        node("Cast", ["m"], to=TensorProto.FLOAT),
    ]
    x = RNG.integers(-8, 8, size=(2, 5)).astype(np.float32)
    (dx,) = run(gradient_model(forward_model(nodes, ["N", 5])), x=x, dy=np.ones_like(x))[1:]
    np.testing.assert_array_equal(dx, 2 * x)


def test_nothing_flows_through_a_cast_to_integers() -> None:
    nodes = [
        node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        node("Cast", ["i"], ["f"], to=TensorProto.DOUBLE),
        node("CastLike", ["f", "x"], ["back"]),
        node("Add", ["x", "back"]),
    ]
    check(nodes, (2, 5), x=RNG.uniform(0.2, 0.8, size=(2, 5)))
