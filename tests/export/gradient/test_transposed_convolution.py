"""ConvTranspose in all attribute combinations against PyTorch, and against central differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.differentiate import check, forward_model, gradient_model, node, run
from tests.support.torch_gradient import assert_equals_autograd

RNG = np.random.default_rng(29)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(
    ("stride", "padding", "output_padding"),
    [(1, 0, 0), (1, 1, 0), (2, 1, 1), (2, 0, 0), (3, 2, 1), (3, 0, 2)],
)
def test_equals_float64_autograd(
    stride: int, padding: int, output_padding: int, dilation: int, group: int
) -> None:
    w = RNG.normal(size=(4, 3, 3, 2))
    nodes = [
        node(
            "ConvTranspose",
            ["x", "w", "b"],
            strides=[stride] * 2,
            pads=[padding] * 4,
            output_padding=[output_padding] * 2,
            dilations=[dilation] * 2,
            group=group,
        )
    ]
    bias = RNG.normal(size=3 * group)

    def function(x: torch.Tensor) -> torch.Tensor:
        return F.conv_transpose2d(
            x,
            torch.tensor(w),
            torch.tensor(bias),
            stride,
            padding,
            output_padding,
            group,
            dilation,
        )

    assert_equals_autograd(nodes, function, RNG.normal(size=(2, 4, 5, 6)), {"w": w, "b": bias})


@pytest.mark.parametrize("pads", [[0, 1, 2, 0], [2, 0, 0, 1]])
def test_asymmetric_padding(pads: list[int]) -> None:
    nodes = [node("ConvTranspose", ["x", "w"], strides=[2, 2], pads=pads)]
    check(nodes, (2, 2, 4, 5), {"w": RNG.normal(size=(2, 3, 3, 3))})


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_padding(auto_pad: str) -> None:
    nodes = [node("ConvTranspose", ["x", "w"], strides=[2, 2], auto_pad=auto_pad)]
    check(nodes, (2, 2, 4, 5), {"w": RNG.normal(size=(2, 3, 3, 3))})


def test_in_one_dimension() -> None:
    nodes = [node("ConvTranspose", ["x", "w"], strides=[2], pads=[1, 0])]
    check(nodes, (2, 2, 5), {"w": RNG.normal(size=(2, 3, 3))})


@pytest.mark.parametrize("output_shape", [[8, 7], [9, 10], [7, 8]])
@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER"])
def test_a_stated_output_shape(output_shape: list[int], auto_pad: str) -> None:
    """⟨dy, f(x)⟩ = ⟨dx, x⟩ for a linear f: the reference evaluator does not know this attribute well."""
    conv = node("ConvTranspose", ["x", "w"], strides=[3, 3], output_shape=output_shape, auto_pad=auto_pad)
    w = {"w": RNG.normal(size=(1, 2, 3, 3))}
    model = gradient_model(forward_model([conv], ["N", 1, 3, 3], w))
    x = RNG.normal(size=(2, 1, 3, 3)).astype(np.float32)
    dy = RNG.normal(size=(2, 2, *output_shape)).astype(np.float32)
    y, dx = run(model, x=x, dy=dy)
    terms, of_x = (dy * y).astype(np.float64), (dx * x).astype(np.float64)
    # The sum may nearly cancel: an error is small beside the terms, not beside it.
    assert abs(terms.sum() - of_x.sum()) <= 1e-6 * np.abs(terms).sum()


def test_the_weight_is_shared() -> None:
    """The gradient is a Conv on the same initializer."""
    nodes = [node("ConvTranspose", ["x", "w"])]
    model = gradient_model(forward_model(nodes, ["N", 2, 4, 5], {"w": RNG.normal(size=(2, 3, 3, 3))}))
    assert [n.input[1] for n in model.graph.node] == ["w", "w"]
