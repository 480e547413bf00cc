"""A Gather that reads every element at its own place is no operator at all."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from sad_export import GraphError, input_gradient
from tests.support.differentiate import Array, run
from tests.support.graphs import classifier, make

IMAGES = np.random.default_rng(0).random((3, 3, 12, 12), dtype=np.float32)


def as_strided(stride: int, first: int = 0):  # type: ignore[no-untyped-def]
    """The pooled (N, 8, 1, 1) as PyTorch's exporter writes ``as_strided`` of it."""

    def change(nodes: list[onnx.NodeProto], constants: dict[str, Array]) -> None:
        constants |= {
            "flat": np.array([-1]),
            "zero": np.array(first),
            "none": np.array(0),
            "one": np.array(1),
            "stride": np.array(stride),
            "axes": np.array([1, 2, 3]),
            "channels": np.arange(8).reshape(1, 8, 1, 1),
        }
        nodes[3:3] = [
            make("Reshape", ["g", "flat"], ["line"]),
            make("Shape", ["image"], ["shape"]),
            make("Gather", ["shape", "none"], ["n"], axis=0),
            make("Range", ["zero", "n", "one"], ["rows"]),
            make("Mul", ["rows", "stride"], ["starts"]),
            make("Unsqueeze", ["starts", "axes"], ["column"]),
            make("Add", ["column", "channels"], ["indices"]),
            make("Gather", ["line", "indices"], ["view"], axis=0),
        ]
        nodes[-2].input[:] = ["view"]

    return change


@pytest.mark.parametrize("batch", ["N", 3])
def test_the_view_is_taken_away_and_the_gradient_is_that_without_it(batch: str | int) -> None:
    shape = (batch, 3, 12, 12)
    graph = input_gradient(classifier(as_strided(8), image=shape), notice=lambda line: None)
    want = run(input_gradient(classifier()), image=IMAGES)
    for found, wanted in zip(run(graph, image=IMAGES), want, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert not {"Range"} & {node.op_type for node in graph.graph.node}


def test_a_view_of_other_places_is_kept_and_refused() -> None:
    """Every image reads the first one: a stride of 0."""
    with pytest.raises(GraphError, match="its indices are computed in the graph"):
        input_gradient(classifier(as_strided(0)))
