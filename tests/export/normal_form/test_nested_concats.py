"""A Concat that continues an earlier one is built on it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from sad_export.loading import normalise
from tests.support.differentiate import forward_model, gradient_model, node
from tests.support.torch_gradient import assert_equals_autograd

RNG = np.random.default_rng(41)


def dense_block(layers: int) -> list:
    """Layer k reads everything before it, as in a DenseNet; y is what all have made."""
    nodes, made = [], ["x"]
    for k in range(layers):
        nodes.append(node("Concat", made, [f"c{k}"], axis=1))
        nodes.append(node("ReduceMean", [f"c{k}", "axis"], [f"m{k}"]))
        nodes.append(node("Tanh", [f"m{k}"], [f"f{k}"]))
        made = [*made, f"f{k}"]
    return [*nodes, node("Concat", made, ["y"], axis=-3)]


def dense_block_in_torch(x: torch.Tensor, layers: int) -> torch.Tensor:
    for _ in range(layers):
        x = torch.cat([x, torch.tanh(x.mean(1, keepdim=True))], 1)
    return x


def test_a_dense_block_equals_autograd() -> None:
    nodes = dense_block(5)
    x = RNG.normal(size=(2, 3, 4, 4))
    assert_equals_autograd(nodes, lambda x: dense_block_in_torch(x, 5), x, constants={"axis": np.array([1])})


def test_every_layer_reads_the_concat_before_it() -> None:
    model = ir.from_proto(forward_model(dense_block(5), ["N", 3, 4, 4], {"axis": np.array([1])}))
    normalise(model)
    concats = [n for n in model.graph if n.op_type == "Concat"]
    assert [len(n.inputs) for n in concats] == [1, 2, 2, 2, 2, 2]
    assert all(n.inputs[0].producer() is before for n, before in zip(concats[2:], concats[1:], strict=False))


def test_the_backward_grows_with_the_layers_not_with_their_square() -> None:
    def slices(layers: int) -> int:
        forward = forward_model(dense_block(layers), ["N", 3, 4, 4], {"axis": np.array([1])})
        return sum(n.op_type == "Slice" for n in gradient_model(forward).graph.node)

    assert slices(24) - slices(12) == 24


def test_another_axis_or_another_order_is_left() -> None:
    nodes = [
        node("Neg", ["x"], ["n"]),
        node("Concat", ["x", "n"], ["a"], axis=1),
        node("Concat", ["n", "x", "n"], ["b"], axis=1),
        node("Concat", ["x", "n", "n"], ["c"], axis=2),
        node("Flatten", ["a"], ["fa"]),
        node("Flatten", ["b"], ["fb"]),
        node("Flatten", ["c"], ["fc"]),
        node("Concat", ["fa", "fb", "fc"], ["y"], axis=1),
    ]
    model = ir.from_proto(forward_model(nodes, ["N", 2, 2, 2]))
    normalise(model)
    assert [len(n.inputs) for n in model.graph if n.op_type == "Concat"] == [2, 3, 3, 3]
