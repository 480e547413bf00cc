"""Each rule against central differences in float64; kinks, ties, broadcasting and fan-out by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.differentiate import check, gradient, node

RNG = np.random.default_rng(11)
W = RNG.normal(size=(3, 4, 5))


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 1), (5,), (1,)], ids=str)
@pytest.mark.parametrize("order", ["x first", "x second"])
def test_arithmetic_with_a_broadcast_constant(op_type: str, shape: tuple[int, ...], order: str) -> None:
    c = RNG.uniform(0.5, 1.5, size=shape)
    x = RNG.uniform(0.5, 1.5, size=(2, 3, 4, 5))
    inputs = ["x", "c"] if order == "x first" else ["c", "x"]
    check([node(op_type, inputs)], x.shape, {"c": c}, x=x)


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
def test_broadcasting_of_a_computed_operand_is_undone(op_type: str) -> None:
    """x meets its own mean: the gradient flows through both operands, one of them broadcast."""
    mean = node("ReduceMean", ["x", "axes"], ["m"], keepdims=1)
    x = RNG.uniform(0.5, 1.5, size=(2, 3, 4, 5))
    axes = {"axes": np.array([2, 3])}
    check([mean, node(op_type, ["x", "m"])], x.shape, axes, x=x)
    check([mean, node(op_type, ["m", "x"])], x.shape, axes, x=x)


def test_broadcasting_of_a_lower_rank_is_undone() -> None:
    sums = node("ReduceSum", ["x", "axes"], ["s"], keepdims=0)
    check([sums, node("Mul", ["x", "s"])], (2, 2, 3, 3), {"axes": np.array([1])})


def test_fan_out_sums_all_contributions() -> None:
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Sigmoid", ["x"], ["b"]),
        node("Mul", ["a", "b"], ["c"]),
        node("Sum", ["a", "b", "c", "x"]),
    ]
    check(nodes, (2, 3, 4))


def test_one_value_read_twice_by_one_node() -> None:
    check([node("Mul", ["x", "x"])], (2, 3, 4))


def test_shared_weights_are_differentiated_at_every_use() -> None:
    w = RNG.normal(size=(2, 2, 3, 3))
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["r"]),
        node("Conv", ["r", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    check(nodes, (2, 2, 5, 5), {"w": w})


@pytest.mark.parametrize("op_type", ["Relu", "LeakyRelu", "Sigmoid", "Tanh", "Neg", "Identity", "Dropout"])
def test_unary(op_type: str) -> None:
    check([node(op_type)], (2, 3, 4))


def test_leaky_relu_with_negative_slope_on_both_sides() -> None:
    check([node("LeakyRelu", alpha=-0.5)], (2, 3, 4))


def test_relu_at_its_kink_is_zero() -> None:
    np.testing.assert_array_equal(
        gradient([node("Relu")], np.array([[-1.0, 0.0, 2.0]]), np.ones((1, 3))), [[0, 0, 1]]
    )


@pytest.mark.parametrize("bounds", [("low", "high"), ("low", ""), ("", "high")])
def test_clip(bounds: tuple[str, str]) -> None:
    inputs = ["x", *bounds] if bounds[1] else ["x", bounds[0]]
    constants = {name: np.array(value) for name, value in (("low", -0.4), ("high", 0.6)) if name in inputs}
    check([node("Clip", inputs)], (2, 3, 4), constants)


def test_relu6_at_both_kinks_is_zero_as_in_pytorch() -> None:
    constants = {"low": np.array(0.0), "high": np.array(6.0)}
    x = np.array([[-1.0, 0.0, 3.0, 6.0, 7.0]])
    np.testing.assert_array_equal(
        gradient([node("Clip", ["x", "low", "high"])], x, np.ones((1, 5)), constants), [[0, 0, 1, 0, 0]]
    )


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_gemm(trans_b: int, bias: bool) -> None:
    w = RNG.normal(size=(5, 3) if trans_b else (3, 5))
    inputs = ["x", "w", "c"] if bias else ["x", "w"]
    constants = {"w": w, "c": RNG.normal(size=5)} if bias else {"w": w}
    check([node("Gemm", inputs, transB=trans_b, alpha=0.5, beta=2.0)], (4, 3), constants)


@pytest.mark.parametrize("keepdims", [0, 1])
def test_gemm_with_a_computed_addend(keepdims: int) -> None:
    """The addend is as large as the output, or a column that broadcasts."""
    addend = node("ReduceSum", ["x", "axes"], ["c"], keepdims=1) if keepdims else node("Sin", ["x"], ["c"])
    constants = {"w": RNG.normal(size=(3, 3)), "axes": np.array([1])}
    check([addend, node("Gemm", ["x", "w", "c"], alpha=0.5, beta=2.0)], (4, 3), constants)


@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_on_a_transposed_input(trans_b: int) -> None:
    """transA with a static batch: the gradient is transposed too."""
    w = RNG.normal(size=(5, 4) if trans_b else (4, 5))
    nodes = [node("Transpose", ["x"], ["t"], perm=[1, 0]), node("Gemm", ["t", "w"], transA=1, transB=trans_b)]
    check(nodes, (2, 4), {"w": w})


@pytest.mark.parametrize("w", [W[0].T, W.transpose(0, 2, 1)], ids=["matrix", "batch of matrices"])
def test_matmul_with_a_constant(w: np.ndarray) -> None:
    check([node("MatMul", ["x", "w"])], (2, 3, 4, 5), {"w": w})


def test_matmul_of_two_computed_operands() -> None:
    """Attention's q·kᵀ."""
    nodes = [node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]), node("MatMul", ["x", "t"])]
    check(nodes, (2, 3, 4, 5))


def test_matmul_with_a_constant_on_the_left() -> None:
    check([node("MatMul", ["w", "x"])], (2, 3, 4, 5), {"w": RNG.normal(size=(6, 4))})


def test_batch_normalization() -> None:
    c = {name: RNG.uniform(0.5, 2, size=3) for name in ("g", "b", "m", "v")}
    check([node("BatchNormalization", ["x", "g", "b", "m", "v"], epsilon=1e-3)], (2, 3, 4, 4), c)


@pytest.mark.parametrize("op_type", ["ReduceMean", "ReduceSum"])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[2, 3], [-1], [1]], ids=str)
def test_reduction(op_type: str, keepdims: int, axes: list[int]) -> None:
    check([node(op_type, ["x", "axes"], keepdims=keepdims)], (2, 3, 4, 5), {"axes": np.array(axes)})


def test_reduce_mean_with_axes_as_attribute_before_opset_18() -> None:
    check([node("ReduceMean", axes=[2, 3], keepdims=0)], (2, 3, 4, 5), opset=13)


def test_reduction_without_axes_that_does_nothing() -> None:
    check([node("ReduceSum", ["x"], noop_with_empty_axes=1)], (2, 3, 4))


def test_flatten() -> None:
    check([node("Flatten")], (2, 3, 4, 5))


def test_reshape_that_keeps_the_batch() -> None:
    check([node("Reshape", ["x", "s"])], (2, 3, 4), {"s": np.array([0, 4, 3])})


def test_reshape_that_merges_into_the_batch() -> None:
    nodes = [node("Reshape", ["x", "s"], ["a"]), node("Gemm", ["a", "w"])]
    check(nodes, (2, 3, 4), {"s": np.array([-1, 4]), "w": RNG.normal(size=(4, 2))})


def test_squeeze_and_unsqueeze() -> None:
    nodes = [
        node("Unsqueeze", ["x", "a"], ["u"]),
        node("Mul", ["u", "c"], ["m"]),
        node("Squeeze", ["m", "a"]),
    ]
    check(nodes, (2, 3, 4), {"a": np.array([1]), "c": RNG.normal(size=(1, 3, 4))})


def test_transpose() -> None:
    check([node("Transpose", perm=[0, 2, 3, 1])], (2, 3, 4, 5))


def test_concat_of_computed_and_constant_parts() -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Concat", ["x", "c", "r"], axis=1)]
    check(nodes, (1, 3, 4), {"c": RNG.normal(size=(1, 2, 4))})


def test_pad() -> None:
    check([node("Pad", ["x", "p"])], (2, 3, 5, 6), {"p": np.array([0, 0, 1, 2, 0, 0, 2, 0])})


def test_negative_pad_leaves_zeros_where_it_cropped() -> None:
    """Against PyTorch: ONNX's reference evaluator refuses negative padding."""
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.pad(x, (1, -2, -1, 0))
    dy = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, dy)
    pads = {"p": np.array([0, 0, -1, 1, 0, 0, 0, -2])}
    dx = gradient([node("Pad", ["x", "p"])], x.detach().numpy(), dy.numpy(), pads)
    np.testing.assert_allclose(dx, expected.numpy(), rtol=1e-6)


def test_pad_of_named_axes() -> None:
    constants = {"p": np.array([1, 2, 0, 1]), "a": np.array([-1, 2])}
    check([node("Pad", ["x", "p", "", "a"])], (2, 3, 5, 6), constants)
