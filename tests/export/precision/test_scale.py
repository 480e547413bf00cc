"""The gradient's scale inside the backward: powers of two, at values that the whole gradient passes."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from sad_export.graph.write import to_proto
from sad_export.precision import gradient_scales
from sad_export.precision.scale import scale_gradient
from tests.support.differentiate import run
from tests.support.last_weight import with_last_weight
from tests.support.models import forward_onnx, randomised, small_cnn, two_pass_graph

IMAGES = np.random.default_rng(0).random((4, 3, 16, 16), dtype=np.float32)


class Shrinking(nn.Module):
    """Each of its blocks, with a skip connection, makes the gradient 1000 times smaller."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in range(6)])
        self.normalisation = nn.BatchNorm2d(3)
        self.head = nn.Linear(3 * 16 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.normalisation(x)
        for block in self.blocks:
            x = 1e-3 * (x + torch.relu(block(x)))
        return torch.as_tensor(self.head(x.flatten(1)))


@pytest.fixture(scope="module")
def forward() -> onnx.ModelProto:
    return forward_onnx(small_cnn())


def test_a_healthy_gradient_is_scaled_once_by_a_power_of_two(forward: onnx.ModelProto) -> None:
    scales = gradient_scales(two_pass_graph(forward, eta=0.3), IMAGES)
    assert len(scales) == 1
    assert math.frexp(next(iter(scales.values())))[0] == 0.5


def test_a_gradient_that_shrinks_beyond_fp16_is_scaled_again_on_its_way() -> None:
    scales = gradient_scales(two_pass_graph(forward_onnx(randomised(Shrinking())), eta=0.3), IMAGES)
    assert len(scales) >= 3
    assert math.prod(scales.values()) > 2.0**50


def test_scaling_changes_no_bit_of_the_result(forward: onnx.ModelProto) -> None:
    """In float32, whose range it does not leave."""
    model = two_pass_graph(forward, eta=0.3)
    scaled = model.clone()
    scale_gradient(scaled.graph, gradient_scales(model, IMAGES))
    assert products(scaled) > products(model)
    outputs = zip(run(to_proto(scaled), image=IMAGES), run(to_proto(model), image=IMAGES), strict=True)
    assert all(np.array_equal(got, want) for got, want in outputs)


def products(model: ir.Model) -> int:
    return sum(node.op_type == "Mul" for node in model.graph)


def test_no_scale_is_set_where_the_gradient_is_zero(forward: onnx.ModelProto) -> None:
    silent = with_last_weight(forward, np.zeros_like)
    assert gradient_scales(two_pass_graph(silent, eta=0.3), IMAGES) == {}
