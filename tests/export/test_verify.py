"""The gate: what is right passes, and each way of being wrong is refused by its own figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper

from sad_deploy.classifier import SADClassifier
from sad_export import two_pass
from sad_export.graph.session import cpu_session
from sad_export.two_pass import Defence
from sad_export.verify import VerificationError, verify
from sad_export.verify_forward import verify_forward
from sad_runtime.choices import Normalization
from sad_runtime.verification import TOLERANCES, Verification
from tests.support.models import forward_onnx, small_cnn

ETA = 50.0
IMAGES = np.random.default_rng(1).random((11, 3, 16, 16), dtype=np.float32)


@pytest.fixture(scope="module")
def forward() -> onnx.ModelProto:
    return forward_onnx(small_cnn())


@pytest.fixture
def graph(forward: onnx.ModelProto) -> onnx.ModelProto:
    return two_pass(forward, eta=ETA)


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    defended = SADClassifier(small_cnn(), eta=ETA).defend(torch.from_numpy(IMAGES))
    return {name: value.numpy() for name, value in defended._asdict().items()}


def saved(graph: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(graph, str(path))
    return path


def test_the_right_graph_passes(graph: onnx.ModelProto, reference: dict, tmp_path: Path) -> None:
    figures = verify(saved(graph, tmp_path), IMAGES, reference)
    assert figures.images == 11
    assert figures.label_agreement == figures.plain_label_agreement == 1
    assert figures.logits_relative_l2 < 1e-5
    assert figures.saliency_cosine_min > 0.999
    assert figures.saliency_variation > 0.1


def test_a_zero_saliency_is_refused_though_the_logits_agree(
    graph: onnx.ModelProto, reference: dict, tmp_path: Path
) -> None:
    """With a small η the logits alone would pass."""
    for node in graph.graph.node:
        if node.output[0] == "saliency":
            node.output[0] = "real"
    graph.graph.node.append(onnx.helper.make_node("Sub", ["real", "real"], ["saliency"]))
    with pytest.raises(VerificationError, match=r"median saliency cosine 0 < .*variation of the saliency"):
        verify(saved(graph, tmp_path), IMAGES, reference)


@pytest.mark.parametrize(("zeros", "falls_short"), [(5, False), (6, True), (11, True)])
def test_a_saliency_that_is_zero_on_most_images_falls_short_though_the_references_is(
    zeros: int, falls_short: bool
) -> None:
    figures = Verification(11, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, zeros)
    said = [f"the saliency of {zeros} of 11 images is zero"] if falls_short else []
    assert figures.shortfalls(TOLERANCES["fp32"]) == said


def test_a_graph_that_is_right_for_odd_batches_only_is_refused(
    graph: onnx.ModelProto, reference: dict, tmp_path: Path
) -> None:
    for node in graph.graph.node:
        if node.output[0] == "saliency":
            node.output[0] = "real"
    make = onnx.helper.make_node
    graph.graph.initializer.append(numpy_helper.from_array(np.array([2]), "two"))
    graph.graph.node.extend(
        [
            make("Shape", ["image"], ["batch"], start=0, end=1),
            make("Mod", ["batch", "two"], ["odd"]),
            make("Cast", ["odd"], ["factor"], to=onnx.TensorProto.FLOAT),
            make("Mul", ["real", "factor"], ["saliency"]),
        ]
    )
    path, nine = saved(graph, tmp_path), {name: value[:9] for name, value in reference.items()}
    verify(path, IMAGES[:9], nine, batch_sizes=(1, 3, 9))
    with pytest.raises(VerificationError, match="smallest saliency cosine 0 <"):
        verify(path, IMAGES[:9], nine)


def test_two_zero_saliencies_agree_and_one_beside_another_does_not(
    graph: onnx.ModelProto, tmp_path: Path
) -> None:
    images = IMAGES.copy()
    images[0] = 0.0
    defended = SADClassifier(small_cnn(), eta=ETA).defend(torch.from_numpy(images))
    whole = {name: value.numpy() for name, value in defended._asdict().items()}
    without = {**whole, "saliency": whole["saliency"] * (images > 0).any((1, 2, 3), keepdims=True)}

    right = saved(graph, tmp_path)
    verify(right, images, whole)
    with pytest.raises(VerificationError, match="smallest saliency cosine 0 <"):
        verify(right, images, without)

    for node in graph.graph.node:
        for names in (node.input, node.output):
            names[:] = ["real" if name == "saliency" else name for name in names]
    make = onnx.helper.make_node
    graph.graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3]), "inside"))
    graph.graph.node.extend(
        [
            make("ReduceMax", ["image", "inside"], ["largest"]),
            make("Sign", ["largest"], ["factor"]),
            make("Mul", ["real", "factor"], ["saliency"]),
        ]
    )
    zero_on_black = saved(graph, tmp_path)
    verify(zero_on_black, images, without)
    with pytest.raises(VerificationError, match="smallest saliency cosine 0 <"):
        verify(zero_on_black, images, whole)


def test_a_constant_saliency_is_refused(forward: onnx.ModelProto, reference: dict, tmp_path: Path) -> None:
    graph = two_pass(forward, eta=ETA)
    for node in graph.graph.node:
        if node.output[0] == "saliency":
            node.output[0] = "real"
    graph.graph.initializer.append(numpy_helper.from_array(reference["saliency"][:1], "constant"))
    graph.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    graph.graph.node.append(onnx.helper.make_node("Mul", ["real", "zero"], ["nothing"]))
    graph.graph.node.append(onnx.helper.make_node("Add", ["nothing", "constant"], ["saliency"]))
    with pytest.raises(VerificationError, match="variation of the saliency over the images 0 <"):
        verify(saved(graph, tmp_path), IMAGES, reference)


def test_a_changed_weight_is_refused(graph: onnx.ModelProto, reference: dict, tmp_path: Path) -> None:
    weight = max(graph.graph.initializer, key=lambda t: np.prod(t.dims))
    changed = numpy_helper.to_array(weight).copy()
    changed *= 1.01
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    with pytest.raises(VerificationError, match="relative L2 error of the first pass"):
        verify(saved(graph, tmp_path), IMAGES, reference)


def test_another_eta_is_refused(forward: onnx.ModelProto, reference: dict, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="relative L2 error of the logits"):
        verify(saved(two_pass(forward, eta=ETA * 1.1), tmp_path), IMAGES, reference)


def test_non_finite_logits_are_refused(graph: onnx.ModelProto, reference: dict, tmp_path: Path) -> None:
    broken = {**reference, "logits": np.full_like(reference["logits"], np.nan)}
    with pytest.raises(VerificationError, match="relative L2 error of the logits nan"):
        verify(saved(graph, tmp_path), IMAGES, broken)


def test_one_image_is_not_enough(graph: onnx.ModelProto, reference: dict, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="at least two images"):
        verify(saved(graph, tmp_path), IMAGES[:1], {name: value[:1] for name, value in reference.items()})


def test_a_graph_beyond_one_message_is_opened_by_way_of_a_file(
    graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 GiB of weights are more than a test should hold: the limit is lowered."""
    model = ir.from_proto(graph)
    names = ["logits", "saliency"]
    inside = cpu_session(model).run(names, {"image": IMAGES})
    monkeypatch.setattr("sad_export.graph.session.LARGEST_WEIGHTS", 1000)
    outside = cpu_session(model).run(names, {"image": IMAGES})
    for a, b in zip(inside, outside, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("normalization", list(Normalization))
def test_a_bare_graph_is_checked_against_itself(
    forward: onnx.ModelProto, normalization: Normalization, tmp_path: Path
) -> None:
    defence = Defence(0.1, normalization, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    path = saved(two_pass(forward, **vars(defence)), tmp_path)
    onnx.save(forward, str(tmp_path / "forward.onnx"))
    figures = verify_forward(path, tmp_path / "forward.onnx", IMAGES, defence)
    assert figures.slope_error < 0.02


def test_a_scaled_saliency_contradicts_the_slope(forward: onnx.ModelProto, tmp_path: Path) -> None:
    graph = two_pass(forward, eta=0.1)
    seed = next(n for n in graph.graph.node if n.op_type == "Gather")
    doubled = numpy_helper.from_array(np.full(1, 2, np.float32), "two")
    graph.graph.initializer.append(doubled)
    position = list(graph.graph.node).index(seed)
    original, seed.output[0] = seed.output[0], "seed"
    graph.graph.node.insert(position + 1, onnx.helper.make_node("Mul", ["seed", "two"], [original]))
    onnx.save(forward, str(tmp_path / "forward.onnx"))
    with pytest.raises(VerificationError, match="slope along the saliency"):
        verify_forward(saved(graph, tmp_path), tmp_path / "forward.onnx", IMAGES, Defence(0.1))
