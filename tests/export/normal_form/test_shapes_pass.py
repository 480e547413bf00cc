"""Shapes of a dynamic batch, and what folds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir

from sad_export.loading import normalise
from tests.support.differentiate import check, forward_model, node


def normal_form(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    constants: dict[str, np.ndarray] | None = None,
) -> ir.Graph:
    model = ir.from_proto(forward_model(nodes, shape, constants))
    normalise(model)
    return model.graph


def dims(value: ir.Value) -> list[int | str | None]:
    assert value.shape is not None
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


FLATTEN = [
    node("Shape", ["x"], ["s"]),
    node("Gather", ["s", "zero"], ["n"], axis=0),
    node("Unsqueeze", ["n", "axis"], ["n1"]),
    node("Concat", ["n1", "rest"], ["target"], axis=0),
    node("Reshape", ["x", "target"], ["y"]),
]
CONSTANTS = {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([-1])}


def test_a_reshape_to_a_computed_shape_becomes_a_constant() -> None:
    graph = normal_form(FLATTEN, ["N", 3, 4], CONSTANTS)
    assert [n.op_type for n in graph] == ["Reshape"]
    target = graph[0].inputs[1]
    assert target is not None
    assert target.const_value is not None
    np.testing.assert_array_equal(target.const_value.numpy(), [-1, 12])
    assert dims(graph.outputs[0]) == ["N", 12]
    check(FLATTEN, (2, 3, 4), CONSTANTS)


def test_a_dimension_in_proportion_to_the_batch_is_named_so() -> None:
    graph = normal_form([node("Reshape", ["x", "t"])], ["batch", 6, 4], {"t": np.array([-1, 2, 4])})
    assert dims(graph.outputs[0]) == ["batch*3", 2, 4]


def test_an_unnamed_batch_gets_a_name() -> None:
    model = forward_model([node("Relu")], ["N", 3])
    model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    loaded = ir.from_proto(model)
    normalise(loaded)
    assert dims(loaded.graph.outputs[0]) == ["N", 3]


def test_constants_are_folded_and_the_image_is_not() -> None:
    nodes = [node("Transpose", ["w"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"])]
    graph = normal_form(nodes, ["N", 3], {"w": np.ones((5, 3))})
    assert [n.op_type for n in graph] == ["MatMul"]


def test_a_weight_that_was_folded_into_another_is_dropped() -> None:
    nodes = [node("Transpose", ["w"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"])]
    graph = normal_form(nodes, ["N", 3], {"w": np.ones((5, 3))})
    assert [list(value.shape) for value in graph.initializers.values()] == [[3, 5]]


def test_an_expanded_constant_stays_small() -> None:
    nodes = [node("Expand", ["c", "s"], ["e"]), node("Add", ["x", "e"])]
    graph = normal_form(nodes, ["N", 1000, 1000], {"c": np.ones((1, 1, 1)), "s": np.array([1, 1000, 1000])})
    assert [n.op_type for n in graph] == ["Expand", "Add"]


def test_quantised_weights_stay_quantised() -> None:
    nodes = [node("DequantizeLinear", ["q", "s"], ["w"]), node("MatMul", ["x", "w"])]
    graph = normal_form(nodes, ["N", 3], {"q": np.ones((3, 2), dtype=np.int8), "s": np.array(0.5)})
    assert [n.op_type for n in graph] == ["DequantizeLinear", "MatMul"]


def test_sizes_computed_from_the_image_fold() -> None:
    """Half of the channels, as a channel shuffle takes them."""
    nodes = [
        node("Shape", ["x"], ["s"], start=1, end=2),
        node("Div", ["s", "two"], ["half"]),
        node("Slice", ["x", "zero", "half", "one"]),
    ]
    constants = {"two": np.array([2]), "zero": np.array([0]), "one": np.array([1])}
    graph = normal_form(nodes, ["N", 6, 4], constants)
    assert [n.op_type for n in graph] == ["Slice"]
    check(nodes, (2, 6, 4), constants)
