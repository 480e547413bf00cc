"""Inputs that are not (N, C, H, W) of floats are brought into that form, and it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from sad_export import GraphError, defend, write_gradient
from sad_export.loading import Reading, load_classifier
from tests.support.graphs import Array, classifier, make, run, slope_error

IMAGES = np.random.default_rng(1).random((3, 3, 12, 12), dtype=np.float32)
Nodes, Constants = list[onnx.NodeProto], dict[str, Array]


def to_nchw(nodes: Nodes, constants: Constants) -> None:
    """As tf2onnx writes a Keras model: a Transpose behind the input."""
    nodes.insert(0, make("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2], name="to_nchw"))
    nodes[1].input[0] = "t"


def normalised_to_nchw(nodes: Nodes, constants: Constants) -> None:
    """With the normalisation of Keras' applications before the Transpose, channels last."""
    constants["mean"] = np.array([0.4, 0.5, 0.6], np.float32)
    nodes.insert(0, make("Sub", ["image", "mean"], ["s"], name="normalise"))
    nodes.insert(1, make("Transpose", ["s"], ["t"], perm=[0, 3, 1, 2], name="to_nchw"))
    nodes[2].input[0] = "t"


def written(model: onnx.ModelProto, folder: Path, **options: Any) -> tuple[Path, Path, list[str]]:
    """The classifier's file, its gradient's, and what was said."""
    forward, out = folder / "forward.onnx", folder / "gradient.onnx"
    onnx.save(model, forward)
    said: list[str] = []
    write_gradient(forward, out, notice=said.append, **options)
    return forward, out, said


@pytest.mark.parametrize("change", [to_nchw, normalised_to_nchw])
@pytest.mark.parametrize("batch", ["N", 1, None, -1])
def test_channels_last_becomes_channels_first(change: Any, batch: int | str | None, tmp_path: Path) -> None:
    model = classifier(change, image=(batch, 12, 12, 3))
    forward, out, said = written(model, tmp_path)
    assert "channels last, (N, H, W, C)" in said[0]
    logits, gradient = run(out, IMAGES)
    assert gradient.shape == IMAGES.shape

    def phi(x: Array) -> Array:
        rows = [run(forward, each[None].transpose(0, 2, 3, 1))[0] for each in x]
        return np.concatenate(rows)

    np.testing.assert_allclose(logits, phi(IMAGES), rtol=1e-4, atol=1e-5)
    assert slope_error(phi, IMAGES, gradient) < 0.02
    operators = [node.op_type for node in onnx.load(out).graph.node]
    assert operators.count("Transpose") <= (0 if change is to_nchw else 4)


def test_mean_and_std_of_three_channels_fit_a_channels_last_file(tmp_path: Path) -> None:
    forward = tmp_path / "keras.onnx"
    onnx.save(classifier(to_nchw, image=("N", 12, 12, 3)), forward)
    made = defend(forward, tmp_path / "sad.onnx", eta=0.05, mean=(0.4,) * 3, std=(0.2,) * 3, notice=print)
    assert made.verification.slope_error < 0.02
    assert run(made.graph, IMAGES)[1].shape == IMAGES.shape


def test_sixteen_channels_of_three_columns_are_not_channels_last(tmp_path: Path) -> None:
    """A convolution reads the image as it is."""

    def sixteen(nodes: Nodes, constants: Constants) -> None:
        constants["w"] = np.tile(constants["w"], (1, 6, 1, 1))[:, :16]

    graph = load_classifier(classifier(sixteen, image=("N", 16, 12, 3)))
    assert graph.image_shape[1:] == (16, 12, 3)
    assert graph.notices == ()


def test_height_and_width_are_those_that_are_named(tmp_path: Path) -> None:
    model = classifier(image=("N", 3, "H", "W"))
    with pytest.raises(GraphError, match=r"\(N, 3, H, W\): --image-size H,W fixes them"):
        load_classifier(model)
    forward, out, said = written(model, tmp_path, image_size=(12, 10))
    assert said == []
    images = IMAGES[..., :10]
    logits, gradient = run(out, images)
    np.testing.assert_allclose(logits, run(forward, images)[0], rtol=1e-5)
    assert slope_error(lambda x: run(forward, x)[0], images, gradient) < 0.02
    assert (
        defend(forward, tmp_path / "sad.onnx", eta=0.05, image_size=(12, 10)).verification.slope_error < 0.02
    )


def test_another_size_than_the_graphs_own_is_refused() -> None:
    assert load_classifier(classifier(), Reading(image_size=(12, 12))).image_shape[2:] == (12, 12)
    for shape, change in ((("N", 3, 12, 12), None), (("N", 12, 12, 3), to_nchw), (("N", 3, 12, "W"), None)):
        with pytest.raises(GraphError, match="--image-size 8,8: the graph takes images of 12,"):
            load_classifier(classifier(change, image=shape), Reading(image_size=(8, 8)))


def test_channels_that_are_left_open_are_those_of_the_weight(tmp_path: Path) -> None:
    forward, out, said = written(classifier(image=("N", None, "H", "W")), tmp_path, image_size=(12, 12))
    assert said == ["input 'image' has 3 channels, by the weight that reads it"]
    assert slope_error(lambda x: run(forward, x)[0], IMAGES, run(out, IMAGES)[1]) < 0.02


def test_a_dynamic_channels_last_image_takes_a_size(tmp_path: Path) -> None:
    model = classifier(to_nchw, image=(None, None, None, 3))
    _, out, said = written(model, tmp_path, image_size=(12, 12))
    assert "channels last" in said[0]
    assert run(out, IMAGES)[1].shape == IMAGES.shape


@pytest.mark.parametrize("channels_last", [False, True])
def test_bytes_become_floats_from_0_to_1(channels_last: bool, tmp_path: Path) -> None:
    def of_bytes(nodes: Nodes, constants: Constants) -> None:
        constants["255"] = np.array(255, np.float32)
        if channels_last:
            nodes.insert(0, make("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]))
        nodes.insert(
            1 if channels_last else 0, make("Cast", ["t" if channels_last else "image"], ["x"], to=1)
        )
        nodes.insert(2 if channels_last else 1, make("Div", ["x", "255"], ["scaled"]))
        nodes[3 if channels_last else 2].input[0] = "scaled"

    shape = ("N", 12, 12, 3) if channels_last else ("N", 3, 12, 12)
    model = classifier(of_bytes, image=shape, dtype=TensorProto.UINT8)
    forward, out, said = written(model, tmp_path)
    assert "takes bytes; what is written takes floats from 0 to 1" in said[-1]
    bytes_ = np.rint(IMAGES * 255).astype(np.uint8)
    logits, gradient = run(out, bytes_.astype(np.float32) / 255)
    theirs = run(forward, bytes_.transpose(0, 2, 3, 1) if channels_last else bytes_)[0]
    np.testing.assert_allclose(logits, theirs, rtol=1e-4, atol=1e-5)
    assert slope_error(lambda x: run(out, x)[0], IMAGES, gradient) < 0.02
    assert defend(forward, tmp_path / "sad.onnx", eta=0.05).verification.slope_error < 0.02
    # With a normalisation in front, x lies beyond what bytes can say.
    made = defend(forward, tmp_path / "sad.onnx", eta=0.05, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert made.verification.slope_error < 0.02


def test_bytes_that_are_computed_with_are_refused() -> None:
    def halved(nodes: Nodes, constants: Constants) -> None:
        constants["two"] = np.array(2, np.uint8)
        nodes.insert(0, make("Div", ["image", "two"], ["half"]))
        nodes.insert(1, make("Cast", ["half"], ["x"], to=1))
        nodes[2].input[0] = "x"

    with pytest.raises(GraphError, match=r"input 'image' is UINT8, not a float"):
        load_classifier(classifier(halved, dtype=TensorProto.UINT8))


def test_half_precision_is_defended_in_float32_and_differentiated_as_it_is(tmp_path: Path) -> None:
    def halved(nodes: Nodes, constants: Constants) -> None:
        for name, array in list(constants.items()):
            constants[name] = array.astype(np.float16)

    model = classifier(halved, dtype=TensorProto.FLOAT16)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    forward = tmp_path / "half.onnx"
    onnx.save(model, forward)
    said: list[str] = []
    made = defend(forward, tmp_path / "sad.onnx", eta=0.05, notice=said.append)
    assert said == ["the file computes in half precision; what is written computes in float32"]
    assert made.verification.slope_error < 0.02
    logits, *_ = run(made.graph, IMAGES)
    assert logits.dtype == np.float32
    graph = load_classifier(model, Reading())
    assert str(graph.image.dtype) == "FLOAT16"
