"""Global and p-norm pools against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.differentiate import check, node
from tests.support.torch_gradient import assert_equals_autograd

RNG = np.random.default_rng(31)
X = RNG.normal(size=(2, 3, 6, 7))


def test_global_maximum() -> None:
    assert_equals_autograd([node("GlobalMaxPool")], lambda x: F.adaptive_max_pool2d(x, 1), X)


def test_global_maximum_tie_goes_to_the_first() -> None:
    x = RNG.integers(0, 3, size=X.shape).astype(np.float64)
    assert_equals_autograd([node("GlobalMaxPool")], lambda x: F.adaptive_max_pool2d(x, 1), x)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_global_norm(p: int) -> None:
    def norm(x: torch.Tensor) -> torch.Tensor:
        return (x.abs() ** p).sum((2, 3), keepdim=True) ** (1 / p)

    assert_equals_autograd([node("GlobalLpPool", p=p)], norm, X)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_norm_of_windows(p: int, stride: int) -> None:
    attributes = {"kernel_shape": [3, 2], "strides": [stride] * 2, "pads": [1, 0, 1, 0], "p": p}
    check([node("LpPool", **attributes)], X.shape)


def test_norm_of_an_empty_image_has_gradient_zero() -> None:
    x = np.zeros((1, 1, 4, 4))
    assert_equals_autograd([node("GlobalLpPool")], lambda x: x.norm(dim=(2, 3), keepdim=True), x)
