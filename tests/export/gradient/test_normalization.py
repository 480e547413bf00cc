"""Normalisations against PyTorch's float64 autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.differentiate import forward_model, gradient_model, node
from tests.support.torch_gradient import assert_equals_autograd

RNG = np.random.default_rng(13)
X = RNG.normal(size=(2, 6, 4, 5))
SCALE, SHIFT = RNG.uniform(0.5, 1.5, size=6), RNG.normal(size=6)
G, B = torch.tensor(SCALE), torch.tensor(SHIFT)
AFFINE = {"s": SCALE, "b": SHIFT}


def test_instance_normalization() -> None:
    nodes = [node("InstanceNormalization", ["x", "s", "b"], epsilon=1e-3)]
    assert_equals_autograd(nodes, lambda x: F.instance_norm(x, weight=G, bias=B, eps=1e-3), X, AFFINE)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_normalization(groups: int) -> None:
    nodes = [node("GroupNormalization", ["x", "s", "b"], num_groups=groups, epsilon=1e-3)]
    assert_equals_autograd(nodes, lambda x: F.group_norm(x, groups, G, B, 1e-3), X, AFFINE, opset=21)


@pytest.mark.parametrize("axis", [-1, 2, 1])
def test_layer_normalization(axis: int) -> None:
    shape = X.shape[axis:]
    scale = RNG.uniform(0.5, 1.5, size=shape)
    nodes = [node("LayerNormalization", ["x", "s"], axis=axis, epsilon=1e-3)]
    assert_equals_autograd(
        nodes, lambda x: F.layer_norm(x, shape, torch.tensor(scale), None, 1e-3), X, {"s": scale}
    )


def test_layer_normalization_keeps_one_output() -> None:
    """TensorRT refuses one with its mean and deviation; the backward computes them itself."""
    model = gradient_model(forward_model([node("LayerNormalization", ["x", "s"])], ["N", 6], {"s": SCALE}))
    assert [len(n.output) for n in model.graph.node if n.op_type == "LayerNormalization"] == [1]


@pytest.mark.parametrize("axis", [-1, 1])
def test_rms_normalization(axis: int) -> None:
    scale = RNG.uniform(0.5, 1.5, size=X.shape[axis:])
    nodes = [node("RMSNormalization", ["x", "s"], axis=axis, epsilon=1e-3)]
    assert_equals_autograd(
        nodes,
        lambda x: F.rms_norm(x, X.shape[axis:], torch.tensor(scale), 1e-3),
        X,
        {"s": scale},
        opset=23,
    )


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization(p: int) -> None:
    assert_equals_autograd(
        [node("LpNormalization", p=p, axis=1)], lambda x: F.normalize(x, p=float(p), dim=1), X
    )


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_normalization(size: int) -> None:
    nodes = [node("LRN", size=size, alpha=0.3, beta=0.6, bias=1.2)]
    before = (size - 1) // 2

    def lrn(x: torch.Tensor) -> torch.Tensor:
        squares = F.pad(x * x, (0, 0, 0, 0, before, size - 1 - before))
        window = sum(squares[:, i : i + x.shape[1]] for i in range(size))
        return x / (1.2 + 0.3 / size * window) ** 0.6

    assert_equals_autograd(nodes, lrn, X)


def test_mean_variance_normalization_is_expanded() -> None:
    def mvn(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True, correction=0)

    assert_equals_autograd([node("MeanVarianceNormalization", axes=[2, 3])], mvn, X)
