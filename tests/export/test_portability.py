"""The portable graph means the same in every runtime: ten families of classifiers, small.

benchmarks/portability.py has them at full size, in more runtimes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn
from torchvision.models import (
    densenet,
    efficientnet,
    maxvit,
    mnasnet,
    mobilenetv2,
    mobilenetv3,
    regnet,
    resnet,
    shufflenetv2,
    vgg,
)

from sad_export import two_pass
from sad_export.trial_images import smooth_noise
from tests.support.differentiate import run
from tests.support.models import forward_onnx, randomised

Array = np.ndarray[Any, Any]
SIDE, CLASSES = 32, 7
IMAGES = smooth_noise(2, 3, SIDE, SIDE)


def small_vgg() -> nn.Module:
    model = vgg.VGG(vgg.make_layers([8, "M", 16, 16, "M"], batch_norm=True), CLASSES)
    model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(16, CLASSES)
    return model


def small_mobilenet_v3() -> nn.Module:
    block = mobilenetv3.InvertedResidualConfig
    blocks = [block(16, 3, 16, 16, True, "RE", 2, 1, 1), block(16, 5, 32, 16, True, "HS", 1, 1, 1)]
    return mobilenetv3.MobileNetV3(blocks, 32, CLASSES)


def small_efficientnet() -> nn.Module:
    blocks = [
        efficientnet.MBConvConfig(4, 3, 2, 16, 16, 2),
        efficientnet.FusedMBConvConfig(2, 3, 1, 16, 16, 1),
    ]
    return efficientnet.EfficientNet(blocks, 0.0, num_classes=CLASSES)


def small_regnet() -> nn.Module:
    widths = regnet.BlockParams.from_init_params(4, 16, 8.0, 2.0, 8, se_ratio=0.25)
    return regnet.RegNet(widths, CLASSES)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "vgg_bn": small_vgg,
    "resnet": lambda: resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], CLASSES),
    "densenet": lambda: densenet.DenseNet(8, (1, 1), 8, num_classes=CLASSES),
    "mobilenet_v2": lambda: mobilenetv2.MobileNetV2(CLASSES, 0.25, [[1, 16, 1, 1], [6, 32, 2, 2]]),
    "mobilenet_v3": small_mobilenet_v3,
    "mnasnet": lambda: mnasnet.MNASNet(0.1, CLASSES),
    "efficientnet": small_efficientnet,
    "regnet": small_regnet,
    "shufflenet": lambda: shufflenetv2.ShuffleNetV2([2, 2, 2], [8, 16, 32, 32, 32], CLASSES),
    "maxvit": lambda: maxvit.MaxVit((SIDE, SIDE), 8, 4, [16], [1], 8, 0.0, num_classes=CLASSES),
}
IN_GROUPS = {"regnet"}
"""ONNX's reference evaluator computes no ConvTranspose in groups (docs/portability.md)."""


@pytest.fixture(scope="module", params=FAMILIES)
def evaluated(request: pytest.FixtureRequest) -> tuple[onnx.ModelProto, list[Array]]:
    """A family's portable graph, and its outputs by ONNX's reference evaluator."""
    torch.manual_seed(0)
    forward = forward_onnx(randomised(FAMILIES[request.param]()), (3, SIDE, SIDE))
    graph = evaluable = two_pass(forward, eta=0.01, normalization="rms")
    if request.param in IN_GROUPS:
        evaluable = two_pass(forward, eta=0.01, normalization="rms", conv_gradient="conv")
    evaluator = ReferenceEvaluator(evaluable)
    return graph, list(evaluator.run(["logits", "saliency", "plain_logits"], {"image": IMAGES}))


def test_onnxruntime_gives_what_the_specification_says(
    evaluated: tuple[onnx.ModelProto, list[Array]],
) -> None:
    graph, want = evaluated
    assert_equal(run(graph, image=IMAGES), want)


def test_openvino_gives_what_the_specification_says(
    evaluated: tuple[onnx.ModelProto, list[Array]],
) -> None:
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino; the test install has it")
    graph, want = evaluated
    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(graph.SerializeToString()), "CPU", hints)
    found = compiled([IMAGES])
    assert_equal([found[name] for name in ("logits", "saliency", "plain_logits")], want)


def assert_equal(got: list[Array], want: list[Array]) -> None:
    """Image by image, to float32's rounding."""
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        a, b = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
        assert (np.linalg.norm(a - b, axis=1) <= 1e-4 * np.linalg.norm(b, axis=1)).all()
