from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from sad_export import GraphError, two_pass
from sad_export.first_pass import first_pass
from tests.support.differentiate import run
from tests.support.models import forward_onnx, small_cnn

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def forward() -> onnx.ModelProto:
    return forward_onnx(small_cnn())


def defended(forward: onnx.ModelProto, target: str = "portable") -> onnx.ModelProto:
    return two_pass(forward, eta=0.3, normalization="rms", mean=MEAN, std=STD, target=target)


@pytest.mark.parametrize("target", ["portable", "cpu"])
@pytest.mark.parametrize("batch", [1, 5])
def test_it_gives_the_plain_logits_of_the_two_pass_graph(
    forward: onnx.ModelProto, target: str, batch: int
) -> None:
    model = defended(forward, target)
    images = np.random.default_rng(0).random((batch, 3, 16, 16), dtype=np.float32)
    (cut,) = run(first_pass(model), image=images)
    _, _, plain = run(model, image=images)
    np.testing.assert_allclose(cut, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["portable", "cpu"])
def test_it_has_the_nodes_and_weights_of_the_forward_graph_and_the_normalisation(
    forward: onnx.ModelProto, target: str
) -> None:
    model = defended(forward, target)
    before = model.SerializeToString(deterministic=True)
    cut = first_pass(model)
    assert [output.name for output in cut.graph.output] == ["plain_logits"]
    onnx.checker.check_model(cut, full_check=True)
    convolutions = sum(node.op_type == "Conv" for node in forward.graph.node)
    assert sum(node.op_type == "Conv" for node in cut.graph.node) == convolutions
    assert len(cut.graph.node) <= len(forward.graph.node) + 2  # minus mean, by std
    assert not any(node.op_type == "ConvTranspose" for node in cut.graph.node)
    assert not any(node.name.startswith(("backward/", "second/", "mix/")) for node in cut.graph.node)
    assert model.SerializeToString(deterministic=True) == before


def test_it_reads_a_file(forward: onnx.ModelProto, tmp_path: Path) -> None:
    model = defended(forward)
    onnx.save(model, str(tmp_path / "model.onnx"))
    assert first_pass(tmp_path / "model.onnx") == first_pass(model)


def test_a_graph_of_another_kind_is_refused_with_its_names(forward: onnx.ModelProto) -> None:
    with pytest.raises(GraphError, match=r"not a two-pass graph: .*'image'.*'plain_logits'.* → ") as caught:
        first_pass(forward)
    assert forward.graph.output[0].name in caught.value.message
