"""Reductions against PyTorch: every operator, ties, zeros."""

from __future__ import annotations

import numpy as np
import pytest

from sad_export.gradient import without_rule
from sad_export.lowering import Portable
from tests.support.differentiate import gradient, graph_of, node
from tests.support.torch_gradient import assert_equals_autograd

RNG = np.random.default_rng(9)
REDUCTIONS = {
    "ReduceMax": lambda x: x.amax((2, 3)),
    "ReduceMin": lambda x: x.amin((2, 3)),
    "ReduceL1": lambda x: x.abs().sum((2, 3)),
    "ReduceL2": lambda x: x.norm(dim=(2, 3)),
    "ReduceSumSquare": lambda x: (x * x).sum((2, 3)),
    "ReduceLogSum": lambda x: x.sum((2, 3)).log(),
    "ReduceLogSumExp": lambda x: x.logsumexp((2, 3)),
    "ReduceProd": lambda x: x.prod(3).prod(2),
    "ReduceMean": lambda x: x.mean((2, 3)),
    "ReduceSum": lambda x: x.sum((2, 3)),
}
AXES = {"a": np.array([2, 3])}


@pytest.mark.parametrize("op_type", REDUCTIONS)
def test_reduction_equals_float64_autograd(op_type: str) -> None:
    x = RNG.uniform(0.5, 1.5, size=(2, 3, 4, 5))
    assert_equals_autograd([node(op_type, ["x", "a"], keepdims=0)], REDUCTIONS[op_type], x, AXES)


@pytest.mark.parametrize("op_type", [name for name in REDUCTIONS if name != "ReduceSum"])
def test_axes_are_an_attribute_before_opset_18(op_type: str) -> None:
    x = RNG.uniform(0.5, 1.5, size=(2, 3, 4, 5))
    assert_equals_autograd([node(op_type, ["x"], keepdims=0, axes=[2, 3])], REDUCTIONS[op_type], x, opset=13)


@pytest.mark.parametrize("op_type", ["ReduceMax", "ReduceMin"])
def test_tied_extremes_share_evenly_as_in_pytorch(op_type: str) -> None:
    x = RNG.integers(0, 3, size=(2, 3, 4, 5)).astype(np.float64)
    assert_equals_autograd([node(op_type, ["x", "a"], keepdims=0)], REDUCTIONS[op_type], x, AXES)


@pytest.mark.parametrize("op_type", ["ReduceL1", "ReduceL2"])
def test_a_norm_of_zero_has_gradient_zero(op_type: str) -> None:
    dx = gradient([node(op_type, ["x", "a"], keepdims=0)], np.zeros((1, 2, 3, 3)), np.ones((1, 2)), AXES)
    np.testing.assert_array_equal(dx, 0)


@pytest.mark.parametrize("zeros", [1, 2])
def test_a_product_with_zeros_is_not_divided_by_them(zeros: int) -> None:
    x = RNG.uniform(0.5, 1.5, size=(1, 2, 2, 3))
    x[0, 0, 0, :zeros] = 0
    assert_equals_autograd([node("ReduceProd", ["x", "a"], keepdims=0)], REDUCTIONS["ReduceProd"], x, AXES)


def test_a_reduction_over_the_batch_is_refused() -> None:
    graph = graph_of([node("ReduceMax", ["x", "a"])], ["N", 4], {"a": np.array([0])})
    ((_, reason),) = without_rule(Portable(opset=20), list(graph), graph.inputs[0], graph.outputs[0])
    assert reason.startswith("ReduceMax: it reduces over the batch")


def test_logsumexp_of_large_numbers() -> None:
    x = 80 * RNG.normal(size=(2, 3, 4, 5))
    assert_equals_autograd(
        [node("ReduceLogSumExp", ["x", "a"], keepdims=0)], REDUCTIONS["ReduceLogSumExp"], x, AXES
    )
