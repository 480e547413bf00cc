"""x + ηS in pixels, against the graph and against PyTorch."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from sad_deploy.classifier import add_saliency, standardized
from sad_export.two_pass import two_pass
from sad_runtime.choices import Normalization
from sad_runtime.defended import defended_image, normalized
from sad_runtime.manifest import Defence, Manifest
from tests.support.tiny_bundle import LinearModel, manifest_of

EVERY_DEFENCE = [
    Defence(eta, normalization, clip)
    for eta, normalization in [(0.8, "none"), (0.05, "rms"), (0.1, "linf"), (0.02, "sign")]
    for normalization in [Normalization(normalization)]
    for clip in [False, True]
]


def manifest_with(model: LinearModel, defence: Defence) -> Manifest:
    return dataclasses.replace(manifest_of(model), defence=defence)


def hidden_layer_graph(model: LinearModel) -> onnx.ModelProto:
    """Two layers with a ReLU, so that the saliency differs from image to image."""
    rng = np.random.default_rng(1)
    classes, *shape = model.weight.shape
    weights = {
        "w1": rng.normal(size=(int(np.prod(shape)), 24)).astype(np.float32) * np.float32(0.1),
        "w2": rng.normal(size=(24, classes)).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "w1"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("MatMul", ["active", "w2"], ["logits"]),
        ],
        "forward",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    "defence", EVERY_DEFENCE, ids=lambda d: f"{d.normalization}{'-clipped' if d.clip else ''}"
)
def test_first_pass_of_the_defended_image_is_the_second_pass_of_the_image(
    model: LinearModel, defence: Defence
) -> None:
    manifest = manifest_with(model, defence)
    space = manifest.input_space
    graph = two_pass(
        hidden_layer_graph(model),
        eta=defence.eta,
        normalization=defence.normalization,
        clip=defence.bounds(space),
        mean=space.mean,
        std=space.std,
    )
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).random((6, 3, 8, 8), dtype=np.float32)
    logits, saliency = session.run(["logits", "saliency"], {"image": images})
    defended = np.stack([defended_image(x, s, manifest) for x, s in zip(images, saliency, strict=True)])
    (plain_logits,) = session.run(["plain_logits"], {"image": defended.astype(np.float32)})
    np.testing.assert_allclose(plain_logits, logits, rtol=1e-4, atol=1e-4)
    assert np.abs(session.run(["plain_logits"], {"image": images})[0] - logits).max() > 0.01
    assert (defended.min() >= 0 and defended.max() <= 1) == defence.clip


@pytest.mark.parametrize("defence", EVERY_DEFENCE, ids=str)
def test_defended_image_is_what_pytorch_feeds_to_the_second_pass(
    model: LinearModel, defence: Defence
) -> None:
    manifest = manifest_with(model, defence)
    space = manifest.input_space
    rng = np.random.default_rng(2)
    image = rng.random((3, 8, 8), dtype=np.float32)
    s = rng.normal(size=(3, 8, 8)).astype(np.float32)
    reference = add_saliency(
        standardized(torch.from_numpy(image[None]).double(), space),
        torch.from_numpy(s[None]).double(),
        eta=defence.eta,
        normalization=defence.normalization,
        clip=defence.bounds(space),
    )
    x = (defended_image(image, s, manifest) - np.reshape(space.mean, (-1, 1, 1))) / np.reshape(
        space.std, (-1, 1, 1)
    )
    np.testing.assert_allclose(x, reference[0].numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalization", list(Normalization))
def test_map_of_zeros_changes_nothing(model: LinearModel, normalization: Normalization) -> None:
    image = np.random.default_rng(0).random((3, 8, 8), dtype=np.float32)
    manifest = manifest_with(model, Defence(0.5, normalization, clip=True))
    np.testing.assert_array_equal(defended_image(image, np.zeros_like(image), manifest), image)


@pytest.mark.parametrize("scale", [1e-38, 1e38])
def test_tiny_and_huge_maps_are_normalised_without_overflow(scale: float) -> None:
    s = np.linspace(-1, 1, 48).reshape(3, 4, 4)
    for normalization in (Normalization.RMS, Normalization.LINF, Normalization.SIGN):
        scaled = normalized((s * scale).astype(np.float32), normalization)
        np.testing.assert_allclose(scaled, normalized(s.astype(np.float32), normalization), rtol=1e-5)
