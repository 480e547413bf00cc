"""A fixed batch is made dynamic where the graph gives the same then, which is tried."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from sad_export import defend, write_gradient
from sad_export.graph.errors import GraphError
from sad_export.loading import load_classifier
from tests.support.graphs import Array, classifier, make, run, slope_error

IMAGES = np.random.default_rng(1).random((6, 3, 12, 12), dtype=np.float32)
Nodes, Constants = list[onnx.NodeProto], dict[str, Array]


def shuffled(nodes: Nodes, constants: Constants, *, batch: int) -> None:
    """Reshapes that name the batch, as ShuffleNet's and the one before the head, and a Resize to a size."""
    constants |= {
        "groups": np.array([batch, 2, 4, 12, 12]),
        "whole": np.array([batch, 8, 12, 12]),
        "size": np.array([batch, 8, 24, 24]),
        "flat": np.array([batch, -1]),
    }
    nodes[2:4] = [
        make("Reshape", ["r", "groups"], ["split"], name="split"),
        make("Transpose", ["split"], ["crossed"], perm=[0, 2, 1, 3, 4], name="cross"),
        make("Reshape", ["crossed", "whole"], ["joined"], name="join"),
        make("Resize", ["joined", "", "", "size"], ["large"], mode="nearest", name="resize"),
        make("GlobalAveragePool", ["large"], ["g"], name="pool"),
        make("Reshape", ["g", "flat"], ["f"], name="flat"),
    ]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_becomes_dynamic(batch: int, tmp_path: Path) -> None:
    forward, out = tmp_path / "forward.onnx", tmp_path / "gradient.onnx"
    model = classifier(
        lambda nodes, constants: shuffled(nodes, constants, batch=batch), image=(batch, 3, 12, 12)
    )
    onnx.save(onnx.shape_inference.infer_shapes(model), forward)
    said: list[str] = []
    write_gradient(forward, out, notice=said.append)
    assert said == [f"the batch, fixed to {batch}, was made dynamic; 1, 3 and 8 images give the same"]
    logits, gradient = run(out, IMAGES)

    def phi(x: Array) -> Array:
        rows = [np.repeat(each[None], batch, axis=0) for each in x]
        return np.concatenate([run(forward, each)[0][:1] for each in rows])

    np.testing.assert_allclose(logits, phi(IMAGES), rtol=1e-4, atol=1e-5)
    assert slope_error(phi, IMAGES, gradient) < 0.02
    assert defend(forward, tmp_path / "sad.onnx", eta=0.05).verification.slope_error < 0.02


def test_images_that_are_computed_together_keep_their_batch(tmp_path: Path) -> None:
    """The mean over the batch is taken off, so one image alone gives something else."""

    def mixing(nodes: Nodes, constants: Constants) -> None:
        nodes.insert(0, make("ReduceMean", ["image"], ["mean"], axes=[0], keepdims=1))
        nodes.insert(1, make("Sub", ["image", "mean"], ["x"]))
        nodes[2].input[0] = "x"

    forward = tmp_path / "forward.onnx"
    onnx.save(classifier(mixing, image=(2, 3, 12, 12), shape=(2, 5)), forward)
    graph = load_classifier(forward)
    assert graph.image_shape[0] == 2
    assert graph.notices == ("the batch stays fixed to 2: with another one the graph gives something else",)
    with pytest.raises(GraphError, match="its batch is fixed to 2"):
        defend(forward, tmp_path / "sad.onnx", eta=0.05, notice=lambda line: None)


def test_an_if_that_the_shapes_answer_does_not_keep_the_batch_fixed(tmp_path: Path) -> None:
    """As torch's older exporter writes a squeeze, with the batch of its example."""

    def squeezed(nodes: Nodes, constants: Constants) -> None:
        constants |= {"one": np.array(1), "axes": np.array([2, 3]), "at": np.array(2)}
        output = helper.make_tensor_value_info("s", 1, None)
        then = helper.make_graph(
            [make("Squeeze", ["g", "axes"], ["s"], name="squeeze")], "then", [], [output]
        )
        kept = helper.make_graph([make("Identity", ["g"], ["s"], name="keep")], "else", [], [output])
        nodes[3:4] = [
            make("Shape", ["g"], ["shape"]),
            make("Gather", ["shape", "at"], ["length"]),
            make("Equal", ["length", "one"], ["asked"]),
            make("If", ["asked"], ["f"], name="if", then_branch=then, else_branch=kept),
        ]

    onnx.save(classifier(squeezed, image=(1, 3, 12, 12)), tmp_path / "forward.onnx")
    graph = load_classifier(tmp_path / "forward.onnx")
    assert graph.image_shape[0] == "N"
    assert graph.notices == ("the batch, fixed to 1, was made dynamic; 1, 3 and 8 images give the same",)


def test_a_graph_with_a_dynamic_batch_is_not_run_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr("sad_export.loading.batch.cpu_session", refuse)
    assert load_classifier(classifier()).notices == ()


def test_weights_among_the_inputs_and_a_batch_of_one_together(tmp_path: Path) -> None:
    """As every file of the first model zoo is."""
    model = classifier(image=(1, 3, 12, 12))
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.ir_version = 3
    onnx.save(model, tmp_path / "old.onnx")
    write_gradient(tmp_path / "old.onnx", tmp_path / "gradient.onnx", notice=lambda line: None)
    assert run(tmp_path / "gradient.onnx", IMAGES)[1].shape == IMAGES.shape
