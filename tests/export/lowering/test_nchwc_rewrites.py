"""The rewrites for onnxruntime's blocked layout compute the same, and leave alone what they do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sad_export.lowering.nchwc import NchwcAffinePass, NchwcBroadcastPass, NchwcGroupsPass
from tests.support.differentiate import forward_model, node, run

RNG = np.random.default_rng(12)
KERNEL = RNG.normal(size=(32, 3, 3, 3))
STEM = node("Conv", ["x", "stem"], ["a"])


def rewritten(
    step: ir.passes.InPlacePass, nodes: Sequence[onnx.NodeProto], constants: dict[str, Any], **options: Any
) -> tuple[onnx.ModelProto, bool]:
    """The model after a pass, and whether it was modified; it must compute the same."""
    before = forward_model([STEM, *nodes], ["N", 3, 8, 10], {"stem": KERNEL, **constants}, **options)
    model = ir.from_proto(before)
    modified = step(model).modified
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    x = RNG.normal(size=(2, 3, 8, 10)).astype(np.float32)
    np.testing.assert_allclose(run(after, x=x)[0], run(before, x=x)[0], rtol=1e-4, atol=1e-4)
    return after, bool(modified)


def operators(model: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


SCALE, OFFSET = RNG.normal(size=(1, 32, 1, 1)), RNG.normal(size=(1, 32, 1, 1))
AFFINE = (node("Mul", ["a", "s"], ["m"]), node("Add", ["m", "t"], ["y"]))


@pytest.mark.parametrize("shape", [(1, 32, 1, 1), (32, 1, 1)])
@pytest.mark.parametrize("constant_first", [False, True])
def test_an_affine_of_each_channel_becomes_a_depthwise_convolution(
    shape: tuple[int, ...], constant_first: bool
) -> None:
    pairs = (["a", "s"], ["m", "t"])
    if constant_first:
        pairs = tuple(pair[::-1] for pair in pairs)  # type: ignore[assignment]
    nodes = [node("Mul", pairs[0], ["m"]), node("Add", pairs[1], ["r"]), node("Relu", ["r"])]
    after, modified = rewritten(
        NchwcAffinePass(), nodes, {"s": SCALE.reshape(shape), "t": OFFSET.reshape(shape)}
    )
    assert modified
    assert operators(after) == ["Conv", "Conv", "Relu"]


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        (
            [*AFFINE[:1], node("Add", ["m", "t"], ["n"]), node("Mul", ["m", "n"], ["y"])],
            {"s": SCALE, "t": OFFSET},
        ),
        (AFFINE, {"s": SCALE[:, :1], "t": OFFSET}),
        (AFFINE, {"s": SCALE, "t": OFFSET[:, :, :, 0]}),
        (AFFINE, {"s": SCALE, "t": RNG.normal(size=(1, 32, 6, 1))}),
        (
            [node("Softsign", ["a"], ["b"]), node("Mul", ["b", "s"], ["m"]), AFFINE[1]],
            {"s": SCALE, "t": OFFSET},
        ),
    ],
    ids=["product read twice", "one number", "along another axis", "of each row", "not blocked"],
)
def test_other_affines_are_left_alone(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> None:
    if constants["t"].shape == (1, 32, 1):
        constants["t"] = RNG.normal(size=(1, 6, 1))  # of each row, in the shape of an affine of channels
    after, modified = rewritten(NchwcAffinePass(), nodes, constants)
    assert not modified
    assert operators(after) == ["Conv", *(n.op_type for n in nodes)]


GATE = {"g": RNG.normal(size=(32, 32, 1, 1)) / 6}


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("gate_first", [False, True])
def test_squeeze_and_excitation_is_pooled_and_repeated(opset: int, gate_first: bool) -> None:
    """ReduceMean has its axes in an attribute before opset 18, in an input from it on."""
    axes = {"axes": [2, 3]} if opset < 18 else {}
    mean = node("ReduceMean", ["a"] if axes else ["a", "axes"], ["p"], keepdims=1, **axes)
    product = ["q", "a"] if gate_first else ["a", "q"]
    nodes = [mean, node("Conv", ["p", "g"], ["l"]), node("Sigmoid", ["l"], ["q"]), node("Mul", product)]
    constants = GATE if axes else {**GATE, "axes": np.array([-1, 2])}
    after, modified = rewritten(NchwcBroadcastPass(), nodes, constants, opset=opset)
    assert modified
    assert operators(after) == ["Conv", "GlobalAveragePool", "Conv", "Sigmoid", "Resize", "Mul"]


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([node("ReduceMean", ["a", "axes"], keepdims=0)], {"axes": np.array([2, 3])}),
        ([node("ReduceMean", ["a", "axes"])], {"axes": np.array([1, 2])}),
        ([node("Mul", ["a", "s"])], {"s": SCALE}),
        ([node("Mul", ["a", "a"])], {}),
    ],
    ids=["axes dropped", "other axes", "constant", "equal shapes"],
)
def test_other_means_and_products_are_left_alone(
    nodes: list[onnx.NodeProto], constants: dict[str, Any]
) -> None:
    after, modified = rewritten(NchwcBroadcastPass(), nodes, constants)
    assert not modified
    assert operators(after) == ["Conv", *(n.op_type for n in nodes)]


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_narrow_groups_are_widened_to_whole_blocks(width: int, stride: int) -> None:
    w = RNG.normal(size=(32, width, 3, 3))
    conv = node("Conv", ["a", "w", "b"], group=32 // width, strides=[stride, stride], pads=[1] * 4)
    after, modified = rewritten(NchwcGroupsPass(), [conv], {"w": w, "b": RNG.normal(size=32)})
    assert modified
    (attribute,) = [a.i for a in after.graph.node[1].attribute if a.name == "group"]
    assert attribute == 2


@pytest.mark.parametrize(
    ("weight", "group"),
    [((32, 1, 3, 3), 32), ((32, 16, 3, 3), 2), ((32, 32, 3, 3), 1), ((64, 4, 3, 3), 8), ((24, 8, 3, 3), 4)],
    ids=["depthwise", "whole blocks", "no groups", "wider outputs", "no whole blocks"],
)
def test_other_groups_are_left_alone(weight: tuple[int, ...], group: int) -> None:
    conv = node("Conv", ["a", "w"], group=group)
    after, modified = rewritten(NchwcGroupsPass(), [conv], {"w": RNG.normal(size=weight)})
    assert not modified
    assert len(after.graph.initializer) == 2
