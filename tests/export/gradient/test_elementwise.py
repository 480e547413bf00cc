"""Arithmetic: every function of one operand, and ties and zeros of those of several."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.differentiate import check, gradient, node
from tests.support.torch_gradient import assert_equals_autograd

RNG = np.random.default_rng(7)
_NAMES = "Abs Exp Log Sqrt Reciprocal Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh"
FUNCTIONS = {name: getattr(torch, name.lower()) for name in _NAMES.split()}


@pytest.mark.parametrize("op_type", FUNCTIONS)
def test_function_of_one_operand_equals_float64_autograd(op_type: str) -> None:
    x = RNG.uniform(0.1, 0.9, size=(2, 3, 4)) + (1 if op_type == "Acosh" else 0)
    assert_equals_autograd([node(op_type)], FUNCTIONS[op_type], x)


def test_abs_at_zero_is_zero() -> None:
    assert_equals_autograd([node("Abs")], torch.abs, np.array([[-1.0, 0.0, 1.0]]))


@pytest.mark.parametrize("exponent", [2.0, 3.0, 0.5, -1.5, 1.0, 0.0])
def test_power_with_a_constant_exponent(exponent: float) -> None:
    x = RNG.uniform(0.5, 1.5, size=(2, 3, 4))
    assert_equals_autograd([node("Pow", ["x", "e"])], lambda x: x**exponent, x, {"e": np.array([exponent])})


def test_power_of_zero_and_of_negative_numbers() -> None:
    x = np.array([[-2.0, 0.0, 3.0]])
    for exponent in (2.0, 3.0, 1.0, 0.0):
        assert_equals_autograd(
            [node("Pow", ["x", "e"])], lambda x, e=exponent: x**e, x, {"e": np.array([exponent])}
        )


def test_power_with_an_integer_exponent() -> None:
    check([node("Pow", ["x", "e"])], (2, 3, 4), {"e": np.array([3])})


def test_power_of_a_computed_exponent() -> None:
    x = RNG.uniform(0.5, 1.5, size=(2, 3, 4))
    check([node("Sin", ["x"], ["s"]), node("Pow", ["x", "s"])], x.shape, x=x)
    check([node("Pow", ["b", "x"])], x.shape, {"b": RNG.uniform(0.5, 1.5, size=(3, 1))}, x=x)


@pytest.mark.parametrize("op_type", ["Max", "Min", "Mean", "Sum"])
def test_several_operands_with_broadcasting(op_type: str) -> None:
    nodes = [node("Sin", ["x"], ["s"]), node(op_type, ["x", "c", "s"])]
    check(nodes, (2, 3, 4), {"c": RNG.normal(size=(3, 1))})


@pytest.mark.parametrize(("op_type", "function"), [("Max", torch.maximum), ("Min", torch.minimum)])
def test_tied_operands_share_evenly_as_in_pytorch(op_type: str, function: object) -> None:
    x = np.array([[-1.0, 0.0, 2.0]])
    zero = torch.zeros(1, dtype=torch.float64)
    assert_equals_autograd([node(op_type, ["x", "z"])], lambda x: function(x, zero), x, {"z": np.zeros(1)})


def test_max_of_one_operand_is_that_operand() -> None:
    check([node("Max", ["x"])], (2, 3))


def test_where_chooses_between_computed_operands() -> None:
    nodes = [
        node("Greater", ["x", "c"], ["above"]),
        node("Sin", ["x"], ["s"]),
        node("Where", ["above", "s", "x"]),
    ]
    check(nodes, (2, 3, 4), {"c": np.array([0.1])})


def test_remainder_passes_the_gradient() -> None:
    x = RNG.uniform(-5, 5, size=(2, 7))
    dx = gradient([node("Mod", ["x", "m"], fmod=1)], x, np.ones((2, 7)), {"m": np.array([1.5])})
    np.testing.assert_array_equal(dx, 1)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("backwards", [0, 1])
def test_cumulative_sum(exclusive: int, backwards: int) -> None:
    check([node("CumSum", ["x", "a"], exclusive=exclusive, reverse=backwards)], (2, 3, 4), {"a": np.array(1)})


@pytest.mark.parametrize("upper", [0, 1])
def test_triangle(upper: int) -> None:
    check([node("Trilu", ["x", "k"], upper=upper)], (2, 3, 4), {"k": np.array(1)})
