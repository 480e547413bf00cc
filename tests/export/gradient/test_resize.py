"""Resize in every mode and coordinate system, against central differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.differentiate import check, forward_model, gradient_model, node
from tests.support.torch_gradient import assert_equals_autograd

RNG = np.random.default_rng(19)
COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("scales", [(2.0, 3.0), (1.5, 0.6), (0.5, 2.3)], ids=str)
def test_resize_by_scales(mode: str, coordinates: str, scales: tuple[float, float]) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    nodes = [node("Resize", ["x", "", "s"], **attributes)]
    check(nodes, (2, 2, 5, 6), {"s": np.array([1, 1, *scales], dtype=np.float32)})


@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_nearest_modes(nearest: str) -> None:
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": nearest}
    nodes = [node("Resize", ["x", "", "s"], **attributes)]
    check(nodes, (2, 2, 5, 6), {"s": np.array([1, 1, 1.6, 0.7], dtype=np.float32)})


@pytest.mark.parametrize("align", [True, False])
def test_resize_to_a_size_as_pytorch_does(align: bool) -> None:
    coordinates = "align_corners" if align else "half_pixel"
    nodes = [
        node("Shape", ["x"], ["all"]),
        node("Slice", ["all", "zero", "two"], ["batch and channels"]),
        node("Concat", ["batch and channels", "size"], ["n"], axis=0),
        node("Resize", ["x", "", "", "n"], mode="linear", coordinate_transformation_mode=coordinates),
    ]
    assert_equals_autograd(
        nodes,
        lambda x: F.interpolate(x, (8, 3), mode="bilinear", align_corners=align),
        RNG.normal(size=(2, 2, 5, 6)),
        {"zero": np.array([0]), "two": np.array([2]), "size": np.array([8, 3])},
    )


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
def test_aspect_ratio_policies_over_named_axes(policy: str) -> None:
    nodes = [node("Resize", ["x", "", "", "n"], mode="linear", axes=[2, 3], keep_aspect_ratio_policy=policy)]
    check(nodes, (2, 2, 5, 6), {"n": np.array([8, 12])})


def test_integer_enlargement_is_a_sum_of_neighbours() -> None:
    attributes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    nodes = [node("Resize", ["x", "", "s"], **attributes)]
    scales = {"s": np.array([1, 1, 2, 2], dtype=np.float32)}
    model = gradient_model(forward_model(nodes, ["N", 2, 5, 6], scales))
    assert "MatMul" not in {n.op_type for n in model.graph.node}
    assert_equals_autograd(
        nodes, lambda x: F.interpolate(x, scale_factor=2), torch.randn(2, 2, 5, 6).numpy(), scales
    )


def test_cropping_resize() -> None:
    attributes = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}
    nodes = [node("Resize", ["x", "r", "s"], **attributes)]
    roi = np.array([0, 0, 0.1, -0.2, 1, 1, 0.8, 0.9], dtype=np.float32)
    check(nodes, (2, 2, 5, 6), {"r": roi, "s": np.array([1, 1, 0.8, 1.5], dtype=np.float32)})
