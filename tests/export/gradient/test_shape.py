"""Operators that move elements: the gradient comes back to where each element was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sad_export.gradient import without_rule
from sad_export.lowering import Portable
from tests.support.differentiate import check, forward_model, gradient_model, graph_of, node
from tests.support.torch_gradient import assert_equals_autograd

RNG = np.random.default_rng(17)
X = RNG.normal(size=(2, 4, 6, 7))


def slicing(starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in zip("seat", (starts, ends, axes, steps), strict=True)}


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([1], [4], [2], [1]),
        ([0, 1], [6, 7], [2, 3], [2, 3]),
        ([-3], [2**63 - 1], [-1], [1]),
        ([5], [-100], [2], [-1]),
        ([-1, 6], [0, 1], [1, 3], [-2, -2]),
        ([0], [2**63 - 1], [0], [1]),
        ([2], [3], [3], [5]),
    ],
    ids=["part", "strided", "from the end", "flipped", "negative strides", "the whole batch", "one"],
)
def test_slice(starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> None:
    check([node("Slice", ["x", "s", "e", "a", "t"])], X.shape, slicing(starts, ends, axes, steps))


def test_a_slice_of_the_batch_is_refused() -> None:
    graph = graph_of([node("Slice", ["x", "s", "e", "a", "t"])], ["N", 4], slicing([0], [1], [0], [1]))
    ((_, reason),) = without_rule(Portable(opset=20), list(graph), graph.inputs[0], graph.outputs[0])
    assert reason.startswith("Slice: it slices the batch")


def test_a_slice_that_ends_before_its_first_position_reads_nothing() -> None:
    """Clamped at 0, and not, as with a negative step, beyond it."""
    graph = graph_of([node("Slice", ["x", "s", "e", "a", "t"])], [1, 4], slicing([0], [-9], [1], [1]))
    ((_, reason),) = without_rule(Portable(opset=20), list(graph), graph.inputs[0], graph.outputs[0])
    assert reason == "Slice: it reads nothing"


@pytest.mark.parametrize(
    "indices",
    [
        np.array(2),
        np.array([-1]),
        np.array([[0, 1], [2, 3]]),
        np.array([3, 0, 5, 1, 4, 2]),
        np.array([3, 0, 5, 1]),
        np.array([0, 2, 2, 5, 0, 1, 1, 3, 0]),
    ],
    ids=["one", "from the end", "matrix", "permutation", "some", "repeated"],
)
def test_gather(indices: np.ndarray) -> None:
    check([node("Gather", ["x", "i"], axis=2)], X.shape, {"i": indices})


def test_gather_writes_no_scatter() -> None:
    nodes = [node("Gather", ["x", "i"], axis=2)]
    for indices in ([1, 2], [3, 0, 5, 1, 4, 2], [0, 2, 2, 5, 0, 1, 1, 3, 0]):
        model = gradient_model(forward_model(nodes, ["N", 4, 6, 7], {"i": np.array(indices)}))
        assert not any("Scatter" in n.op_type for n in model.graph.node)


def test_gather_elements_at_computed_places() -> None:
    """The place of the largest element is read: dy comes back to it alone."""
    nodes = [node("ArgMax", ["x"], ["i"], axis=3, keepdims=1), node("GatherElements", ["x", "i"], axis=3)]
    assert_equals_autograd(nodes, lambda x: x.max(3, keepdim=True).values, X)


@pytest.mark.parametrize("size", [2, 6, 8])
def test_an_adaptive_pool_with_unequal_windows(size: int) -> None:
    """As PyTorch exports it: a GatherND over height and width, and means over what it read."""
    starts = np.arange(5) * size // 5
    ends = -(-(np.arange(5) + 1) * size // 5)
    taps = np.stack([starts, ends - 1], 1)  # the first and the last of each window
    rows, columns = np.broadcast_arrays(taps[:, :, None, None], taps[None, None])
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[2, 3, 0, 1]),
        node("GatherND", ["t", "i"], ["g"]),
        node("Transpose", ["g"], ["b"], perm=[4, 5, 0, 1, 2, 3]),
        node("ReduceMean", ["b", "a"], keepdims=0),
    ]
    check(nodes, (2, 3, size, size), {"i": np.stack([rows, columns], -1), "a": np.array([3, 5])})


def test_scatter_elements_differentiates_data_and_updates() -> None:
    indices = np.zeros((1, 4), dtype=np.int64)
    nodes = [
        node("Sin", ["x"], ["u"]),
        node("Slice", ["u", "s", "e", "a", "t"], ["part"]),
        node("ScatterElements", ["x", "i", "part"], axis=1),
    ]
    check(nodes, (1, 4), {"i": indices[:, :1], **slicing([1], [2], [1], [1])})


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad_modes(mode: str) -> None:
    check([node("Pad", ["x", "p"], mode=mode)], X.shape, {"p": np.array([0, 0, 2, 1, 0, 0, 1, 3])})


def test_reflection_wider_than_the_image_half() -> None:
    check([node("Pad", ["x", "p"], mode="reflect")], (2, 1, 4, 4), {"p": np.array([0, 0, 3, 3, 0, 0, 3, 3])})


def test_split_with_every_part_used() -> None:
    nodes = [node("Split", ["x", "n"], ["a", "b", "c"], axis=1), node("Sum", ["a", "c"], ["s"])]
    nodes += [node("Concat", ["s", "b"], axis=1)]
    check(nodes, X.shape, {"n": np.array([1, 2, 1])})


@pytest.mark.parametrize("used", ["a", "b", "c"])
def test_split_leaves_zeros_for_parts_that_nothing_used(used: str) -> None:
    check([node("Split", ["x"], ["a", "b", "c"], axis=2, num_outputs=3), node("Sin", [used])], X.shape)


def test_expand_and_tile() -> None:
    nodes = [
        node("Expand", ["x", "shape"], ["e"]),
        node("Tile", ["e", "repeats"]),
    ]
    constants = {"shape": np.array([3, 1, 4, 5]), "repeats": np.array([1, 1, 2, 3])}
    check(nodes, (3, 1, 4, 1), constants)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    check([node("DepthToSpace", blocksize=2, mode=mode)], (2, 8, 3, 4))


def test_space_to_depth() -> None:
    check([node("SpaceToDepth", blocksize=2)], (2, 2, 6, 4))


@pytest.mark.parametrize(
    ("equation", "shape"),
    [
        ("nchw,cd->ndhw", (4, 5)),
        ("nchw,w", (7,)),
        ("...hw,wk->...hk", (7, 3)),
        ("nchw,khw->nk", (3, 6, 7)),
        ("nchw,k->nchk", (2,)),
    ],
)
def test_einsum(equation: str, shape: tuple[int, ...]) -> None:
    check([node("Einsum", ["x", "c"], equation=equation)], X.shape, {"c": RNG.normal(size=shape)})


def test_einsum_of_attention() -> None:
    nodes = [node("Sin", ["x"], ["s"]), node("Einsum", ["x", "s"], equation="B G I D, B G J D -> B G I J")]
    check(nodes, (2, 3, 4, 5))


def test_a_diagonal_is_refused() -> None:
    graph = graph_of([node("Einsum", ["x"], equation="nii->ni")], ["N", 4, 4])
    ((_, reason),) = without_rule(Portable(opset=20), list(graph), graph.inputs[0], graph.outputs[0])
    assert reason == "Einsum: 'nii->ni' takes a diagonal"


@pytest.mark.parametrize("shape", [(7,), (1, 4, 7, 2), (4, 7, 2)])
def test_matmul_with_a_vector_and_with_broadcast_batches(shape: tuple[int, ...]) -> None:
    x = (2, 1, 6, 7) if len(shape) == 4 else X.shape
    check([node("MatMul", ["x", "w"])], x, {"w": RNG.normal(size=shape)})


def test_matmul_of_a_vector_from_the_left() -> None:
    check([node("MatMul", ["w", "x"])], X.shape, {"w": RNG.normal(size=6)})


def test_gradient_of_a_computed_weight() -> None:
    """Gemm and MatMul are differentiated in both operands."""
    nodes = [node("Transpose", ["x"], ["t"], perm=[1, 0]), node("Gemm", ["x", "t"], alpha=0.5)]
    check(nodes, (3, 4))
    assert_equals_autograd(
        [node("Gemm", ["w", "x"], transA=1)],
        lambda x: torch.ones(3, 2).double().T @ x,
        RNG.normal(size=(3, 4)),
        {"w": np.ones((3, 2))},
    )
