"""How a rule reads its node: operands by position, outputs and attributes by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest

from sad_export.gradient.registry import Rule, rule_for
from sad_export.graph.expression import Expr
from sad_export.graph.values import Unsupported
from sad_export.lowering import Portable


def value(name: str, *shape: int) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def node(op_type: str, inputs: int, outputs: int = 1, **attributes: object) -> ir.Node:
    return ir.Node(
        "",
        op_type,
        [value(f"x{i}", 2, 3) for i in range(inputs)],
        attributes=ir.convenience.convert_attributes(attributes),
        outputs=[value(f"y{i}", 2, 3) for i in range(outputs)],
    )


def applied(function: object, of: ir.Node, used: Sequence[bool] = (True,)) -> tuple[object, ...]:
    g = Portable(opset=20)
    dys = [g.of(value(f"dy{i}", 2, 3)) if each else None for i, each in enumerate(used)]
    return Rule.of(function).apply(g, of, of.inputs, dys)  # type: ignore[arg-type]


def test_operands_come_by_position_and_outputs_by_name() -> None:
    seen = {}

    def rule(a: Expr, b: Expr, *, y: Expr, dy: Expr) -> Expr:
        seen.update(a=a.value.name, b=b.value.name, y=y.value.name, dy=dy.value.name)
        return dy

    gradients = applied(rule, node("Add", 2))
    assert seen == {"a": "x0", "b": "x1", "y": "y0", "dy": "dy0"}
    assert gradients[1] is None


def test_attributes_come_by_name_with_their_defaults() -> None:
    seen = []

    def rule(x: Expr, *, dy: Expr, alpha: float = 0.5, axes: tuple[int, ...] = (1,)) -> Expr:
        seen.append((alpha, axes))
        return dy

    applied(rule, node("Elu", 1))
    applied(rule, node("Elu", 1, alpha=2.0, axes=[0, 3]))
    assert seen == [(0.5, (1,)), (2.0, (0, 3))]


def test_an_absent_optional_input_is_none_and_has_no_gradient() -> None:
    def rule(x: Expr, low: Expr | None = None, *, dy: Expr) -> tuple[Expr, None]:
        assert low is None
        return dy, None

    assert len(applied(rule, node("Clip", 1))) == 1


def test_any_number_of_operands() -> None:
    def rule(*terms: Expr, dy: Expr) -> tuple[Expr, ...]:
        return (dy,) * len(terms)

    assert len(applied(rule, node("Sum", 3))) == 3


def test_a_rule_for_one_output_refuses_a_node_of_which_another_is_used() -> None:
    def rule(x: Expr, *, dy: Expr) -> Expr:
        return dy

    with pytest.raises(Unsupported, match="another output than its first is used"):
        applied(rule, node("LayerNormalization", 1, 2), used=(True, True))


def test_a_formula_writes_the_nodes_that_it_shows() -> None:
    g = Portable(opset=20)
    x, y = g.of(value("x", 2, 3)), g.of(value("y", 2, 3))
    result = x * (y > 0.0) + np.float32(2) / -y
    assert [each.op_type for each in g.nodes] == ["Greater", "Cast", "Mul", "Neg", "Div", "Add"]
    assert result.shape == (2, 3)
    assert (x * 1.0) is x


def pooled_relu(*, also_read: bool) -> tuple[ir.Graph, ir.Node]:
    z = value("z", 1, 1, 4, 4)
    relu = ir.Node("", "Relu", [z], outputs=[value("x", 1, 1, 4, 4)])
    pool = ir.Node("", "MaxPool", [relu.outputs[0]], outputs=[value("y", 1, 1, 2, 2)])
    nodes = [relu, pool]
    if also_read:
        nodes.append(ir.Node("", "Abs", [relu.outputs[0]], outputs=[value("a", 1, 1, 4, 4)]))
    return ir.Graph([z], [pool.outputs[0]], nodes=nodes, opset_imports={"": 20}), pool


def test_a_relu_that_only_a_pool_reads_is_one_pattern_with_it() -> None:
    graph, pool = pooled_relu(also_read=False)
    found = rule_for(pool)
    assert found is not None
    assert [each.name for each in found[1] if each is not None] == ["z", "x"]
    graph, pool = pooled_relu(also_read=True)
    found = rule_for(pool)
    assert found is not None
    assert list(found[1]) == list(pool.inputs)
    assert graph is pool.graph


@pytest.mark.parametrize("flipped", [False, True])
def test_a_product_with_its_own_sigmoid_is_a_pattern(flipped: bool) -> None:
    x, other = value("x", 2, 3), value("o", 2, 3)
    s = ir.Node("", "Sigmoid", [x], outputs=[value("s", 2, 3)]).outputs[0]
    product = ir.Node("", "Mul", [s, x] if flipped else [x, s], outputs=[value("y", 2, 3)])
    found = rule_for(product)
    assert found is not None
    assert list(found[1]) == [x, s]
    found = rule_for(ir.Node("", "Mul", [other, s], outputs=[value("y", 2, 3)]))
    assert found is not None
    assert list(found[1]) == [other, s]
    assert found[0].function.__name__ == "mul"
