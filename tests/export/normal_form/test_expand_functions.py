"""Operators that the standard defines by others are differentiated through their bodies."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from sad_export.loading import normalise
from tests.support.differentiate import forward_model, gradient_model, node, run
from tests.support.torch_gradient import assert_equals_autograd

RNG = np.random.default_rng(37)


def operators(model_nodes: list, shape: list, constants: dict | None = None, opset: int = 24) -> list[str]:
    model = ir.from_proto(forward_model(model_nodes, shape, constants, opset=opset))
    normalise(model)
    return [n.op_type for n in model.graph]


def test_an_operator_with_a_rule_stays_whole() -> None:
    assert operators([node("Gelu")], ["N", 4]) == ["Gelu"]


def test_what_does_not_depend_on_the_image_stays_whole() -> None:
    nodes = [node("CenterCropPad", ["c", "n"], ["k"]), node("Add", ["x", "k"])]
    assert operators(nodes, ["N", 4], {"c": np.ones(6), "n": np.array([4])}) == ["Add"]  # folded


def test_attention() -> None:
    x = RNG.normal(size=(2, 3, 5, 4))
    nodes = [node("Attention", ["x", "x", "x"])]
    assert_equals_autograd(nodes, lambda x: F.scaled_dot_product_attention(x, x, x), x, opset=24)


def test_attention_with_a_mask_and_heads_in_the_last_axis() -> None:
    x, mask = RNG.normal(size=(2, 5, 8)), np.where(RNG.random((5, 5)) > 0.3, 0.0, -1.0)

    def attention(x: torch.Tensor) -> torch.Tensor:
        heads = x.reshape(2, 5, 2, 4).transpose(1, 2)
        y = F.scaled_dot_product_attention(heads, heads, heads, torch.tensor(mask))
        return y.transpose(1, 2).reshape(2, 5, 8)

    nodes = [node("Attention", ["x", "x", "x", "m"], q_num_heads=2, kv_num_heads=2)]
    assert_equals_autograd(nodes, attention, x, {"m": mask}, opset=24)


def test_attributes_left_to_their_defaults_reach_the_body() -> None:
    """MeanVarianceNormalization's axes are (0, 2, 3) unless stated; with one image, batch and all."""
    x = RNG.normal(size=(1, 3, 4, 4)).astype(np.float32)
    dy = RNG.normal(size=x.shape).astype(np.float32)
    forward = forward_model([node("MeanVarianceNormalization", axes=[0, 2, 3])], list(x.shape))
    del forward.graph.node[0].attribute[:]
    model = gradient_model(forward)
    xt = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y = (xt - xt.mean((2, 3), keepdim=True)) / xt.std((2, 3), keepdim=True, correction=0)
    (expected,) = torch.autograd.grad(y, xt, torch.tensor(dy, dtype=torch.float64))
    np.testing.assert_allclose(run(model, x=x, dy=dy)[1], expected, atol=1e-5)


def test_letters_of_einsum_are_lower_case_for_tensorrt() -> None:
    model = ir.from_proto(
        forward_model(
            [node("Einsum", ["x", "c"], equation="NChw,Cd->Ndhw")], ["N", 2, 3, 4], {"c": np.ones((2, 5))}
        )
    )
    normalise(model)
    assert model.graph[0].attributes.get_string("equation") == "abcd,be->aecd"
