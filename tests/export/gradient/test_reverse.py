from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from sad_export.gradient import covered, reverse, without_rule
from sad_export.gradient.registry import vjp
from sad_export.lowering import Portable
from tests.support.differentiate import graph_of, node


def test_all_nodes_without_a_rule_are_listed_with_the_reason() -> None:
    graph = graph_of(
        [
            node("Det", ["x"], ["a"]),
            node("Relu", ["x"], ["b"]),
            node("GridSample", ["b", "g"], ["c"]),
            node("Add", ["c", "c"]),
        ],
        [1, 1, 4, 4],
        {"g": np.zeros((1, 4, 4, 2))},
    )
    missing = without_rule(Portable(opset=20), list(graph), graph.inputs[0], graph.outputs[0])
    assert [reason for _, reason in missing] == ["no gradient rule for GridSample"]  # Det leads nowhere


def test_a_path_through_an_undifferentiated_input_is_refused() -> None:
    """A weight computed from the image: the rule for Conv would silently drop its gradient."""
    graph = graph_of([node("Conv", ["c", "x"])], [2, 1, 3, 3], {"c": np.ones((1, 1, 5, 5))})
    ((_, reason),) = without_rule(Portable(opset=20), list(graph), graph.inputs[0], graph.outputs[0])
    assert reason == "the rule for Conv does not differentiate input 1"


def test_a_second_rule_for_one_operator_is_refused() -> None:
    assert "Relu" in covered()
    with pytest.raises(ValueError, match="two gradient rules"):
        vjp("Relu")(lambda x, *, dy: dy)


def test_nothing_is_emitted_off_the_path_to_the_target() -> None:
    graph = graph_of(
        [node("Sigmoid", ["c"], ["s"]), node("Relu", ["x"], ["r"]), node("Add", ["r", "s"])],
        ["N", 4],
        {"c": np.zeros(4)},
    )
    b = Portable(opset=20)
    y = graph.outputs[0]
    dy = b.of(ir.Value(name="dy", shape=y.shape, type=y.type))
    reverse(b, list(graph), {y: dy}, graph.inputs[0])
    assert [n.op_type for n in b.nodes] == ["Greater", "Cast", "Mul"]


def test_constants_are_stored_once() -> None:
    b = Portable(opset=20)
    assert b.ints(1, 2).value is b.ints(1, 2).value
    assert b.ints(1, 2).value is not b.ints(2, 1).value
