from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.differentiate import check, forward_model, gradient, gradient_model, node

RNG = np.random.default_rng(3)

# kernel, stride, padding, dilation, ceil_mode, size
MAX_POOLS = {
    "resnet_stem": (3, 2, 1, 1, False, (8, 8)),
    "odd_size": (3, 2, 1, 1, False, (7, 9)),
    "vgg": (2, 2, 0, 1, False, (6, 8)),
    "vgg_odd": (2, 2, 0, 1, False, (7, 7)),
    "stride_one": (3, 1, 1, 1, False, (5, 6)),
    "stride_beyond_kernel": (2, 3, 0, 1, False, (9, 10)),
    "ceil_mode": (3, 2, 0, 1, True, (6, 8)),
    "ceil_mode_padded": (3, 2, 1, 1, True, (6, 7)),
    "dilation": (2, 2, 1, 2, False, (9, 8)),
    "unequal": ((3, 2), (2, 1), (1, 0), 1, False, (8, 5)),
    "one_pixel": (3, 2, 1, 1, False, (1, 1)),
    "pyramid": (7, 1, 3, 1, False, (8, 9)),
    "stride_one_dilated": (3, 1, 1, 2, False, (9, 8)),
    "large_strided": (5, 2, 2, 1, False, (11, 12)),
    "large_ceil_mode": (5, 3, 1, 1, True, (11, 9)),
    "large_unequal": ((5, 3), (2, 1), (2, 1), 1, True, (9, 8)),
}


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def max_pool_case(case: str, x: np.ndarray, target: str) -> tuple[np.ndarray, np.ndarray]:
    """(dx from the rule, dx from PyTorch's float64 autograd)."""
    kernel, stride, padding, dilation, ceil_mode, _ = MAX_POOLS[case]
    xt = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.max_pool2d(xt, kernel, stride, padding, dilation, ceil_mode)
    dy = RNG.normal(size=y.shape)
    (expected,) = torch.autograd.grad(y, xt, torch.tensor(dy))
    pool = node(
        "MaxPool",
        kernel_shape=pair(kernel),
        strides=pair(stride),
        pads=[*pair(padding), *pair(padding)],
        dilations=pair(dilation),
        ceil_mode=int(ceil_mode),
    )
    return gradient([pool], x, dy, target=target), expected.numpy()


@pytest.mark.parametrize("target", ["portable", "cpu", "int8"])
@pytest.mark.parametrize("case", MAX_POOLS)
def test_maxpool_equals_float64_autograd(case: str, target: str) -> None:
    x = RNG.normal(size=(2, 3, *MAX_POOLS[case][-1])).astype(np.float32).astype(np.float64)
    dx, expected = max_pool_case(case, x, target)
    np.testing.assert_allclose(dx, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ["portable", "cpu", "int8"])
@pytest.mark.parametrize("case", MAX_POOLS)
def test_maxpool_tie_goes_to_first_maximum(case: str, target: str) -> None:
    """Few distinct values, as after a ReLU or on a flat background: most windows have ties."""
    x = RNG.integers(0, 3, size=(2, 3, *MAX_POOLS[case][-1])).astype(np.float64)
    dx, expected = max_pool_case(case, x, target)
    np.testing.assert_allclose(dx, expected, rtol=1e-5, atol=1e-6)


def test_maxpool_of_a_constant_image_gives_all_to_the_first_tap() -> None:
    dx = gradient(
        [node("MaxPool", kernel_shape=[2, 2], strides=[2, 2])], np.ones((1, 1, 4, 4)), np.ones((1, 1, 2, 2))
    )
    np.testing.assert_array_equal(dx[0, 0], [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])


def test_maxpool_in_one_dimension_with_negative_input() -> None:
    check(
        [node("MaxPool", kernel_shape=[3], strides=[2], pads=[1, 1])], (2, 3, 9), x=-1 - RNG.random((2, 3, 9))
    )


@pytest.mark.parametrize(
    ("kernel", "stride", "target", "comparisons"),
    [
        (3, 1, "portable", 6),
        (3, 1, "cpu", 6),
        (3, 1, "int8", 9),
        (3, 2, "portable", 9),
        (5, 2, "portable", 10),
    ],
)
def test_maxpool_goes_by_rows_where_that_is_less(
    kernel: int, stride: int, target: str, comparisons: int
) -> None:
    pool = node("MaxPool", kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4)
    model = gradient_model(forward_model([pool], ["N", 2, 12, 12]), target=target)
    assert [n.op_type for n in model.graph.node].count("Equal") == comparisons


def test_maxpool_writes_no_indices() -> None:
    pool = node("MaxPool", kernel_shape=[3, 3], strides=[2, 2])
    model = gradient_model(forward_model([pool], ["N", 2, 9, 9]))
    assert all(len(n.output) == 1 for n in model.graph.node if n.op_type == "MaxPool")


@pytest.mark.parametrize("count_include_pad", [0, 1])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "ceil_mode", "size"),
    [
        (2, 2, 0, 0, (6, 8)),
        (3, 2, 1, 0, (7, 8)),
        (3, 1, 1, 0, (5, 4)),
        (3, 2, 1, 1, (6, 7)),
        (2, 3, 0, 0, (8, 9)),
        (1, 1, 0, 0, (3, 3)),
    ],
)
def test_average_pool_equals_float64_autograd(
    kernel: int, stride: int, padding: int, ceil_mode: int, size: tuple[int, int], count_include_pad: int
) -> None:
    x = RNG.normal(size=(2, 3, *size))
    xt = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.avg_pool2d(xt, kernel, stride, padding, bool(ceil_mode), bool(count_include_pad))
    dy = RNG.normal(size=y.shape)
    (expected,) = torch.autograd.grad(y, xt, torch.tensor(dy))
    pool = node(
        "AveragePool",
        kernel_shape=pair(kernel),
        strides=pair(stride),
        pads=[padding] * 4,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
    )
    np.testing.assert_allclose(gradient([pool], x, dy), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_global_average_pool() -> None:
    check([node("GlobalAveragePool")], (2, 3, 5, 4))


@pytest.mark.parametrize("target", ["portable", "cpu", "int8"])
def test_relu_before_maxpool_is_masked_where_there_are_fewer_elements(target: str) -> None:
    """16 channels: the target cpu has them in its blocked layout."""
    x = RNG.normal(size=(2, 16, 8, 8)).astype(np.float32).astype(np.float64)
    x[0] -= 3.0  # whole windows of zeros
    xt = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.max_pool2d(torch.relu(xt), 3, 2, 1)
    dy = RNG.normal(size=y.shape)
    (expected,) = torch.autograd.grad(y, xt, torch.tensor(dy))
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("MaxPool", ["r"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    ]
    dx = gradient(nodes, x, dy, target=target)
    np.testing.assert_allclose(dx, expected, rtol=1e-5, atol=1e-6)


def test_relu_that_others_read_too_keeps_its_own_mask() -> None:
    x = RNG.normal(size=(2, 3, 8, 8))
    xt = torch.tensor(x, requires_grad=True)
    r = torch.relu(xt)
    y = torch.nn.functional.max_pool2d(r, 3, 1, 1) + torch.sin(r)
    dy = RNG.normal(size=y.shape)
    (expected,) = torch.autograd.grad(y, xt, torch.tensor(dy))
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("MaxPool", ["r"], ["m"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Sin", ["r"], ["s"]),
        node("Add", ["m", "s"]),
    ]
    np.testing.assert_allclose(gradient(nodes, x, dy), expected, rtol=1e-5, atol=1e-6)
