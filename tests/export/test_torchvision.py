"""Torchvision classifiers with BatchNorm, one of each family: their two passes and their attack graphs.

benchmarks/coverage.py runs them all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import nn

from sad_export import attack_graph, two_pass, unsupported_nodes
from tests.support.differentiate import cosines, run
from tests.support.models import forward_onnx, randomised
from tests.support.torch_gradient import saliency64

from .test_attack_graph import by_autograd, gradient_of

ATTACKED = (
    "resnet18", "vgg11_bn", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121",
    "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf", "googlenet",
)  # fmt: skip
"""Those whose attack graphs are tested too. They come first: pytest groups tests by the place in the list."""

FAMILIES = {
    **dict.fromkeys(ATTACKED, 64),
    "resnext50_32x4d": 64,
    "wide_resnet50_2": 64,
    "inception_v3": 75,
    "efficientnet_v2_s": 64,
    "regnet_x_400mf": 64,
    "maxvit_t": 224,
}
"""Name and side of the images."""


class Network(NamedTuple):
    """A classifier, exported: that takes most of the time of a test, so tests share it."""

    name: str
    model: nn.Module
    forward: onnx.ModelProto
    size: int


@pytest.fixture(scope="module")
def network(request: pytest.FixtureRequest) -> Network:
    name, size = request.param, FAMILIES[request.param]
    torch.manual_seed(0)
    auxiliary = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = randomised(torchvision.models.get_model(name, weights=None, num_classes=10, **auxiliary))
    return Network(name, model, forward_onnx(model, (3, size, size)), size)


@pytest.mark.slow
@pytest.mark.parametrize("network", FAMILIES, indirect=True)
def test_two_pass_of_a_torchvision_classifier(network: Network) -> None:
    model, forward, size = network.model, network.forward, network.size
    assert unsupported_nodes(forward) == []
    graphs = {target: two_pass(forward, eta=0.05, target=target) for target in ("portable", "cpu")}
    batch = 1 if size > 100 else 2
    for graph in graphs.values():
        onnx.checker.check_model(graph, full_check=True)
        assert {node.domain for node in graph.graph.node} == {""}
    # In float32 a pre-activation near 0 may fall on the other side of its ReLU than in float64; which one
    # does depends on the processor. A wrong rule is wrong for every image, so a second draw decides.
    first = _differences(model, graphs, 0, batch, size)
    assert not first or not _differences(model, graphs, 1, batch, size), first


@pytest.mark.slow
@pytest.mark.parametrize("network", ATTACKED, indirect=True)
def test_attack_graphs_are_autograds(network: Network) -> None:
    file = two_pass(network.forward, eta=0.7)
    images = np.random.default_rng(0).random((2, 3, network.size, network.size), dtype=np.float32)
    labels = np.array([1, 5])
    for way in ("constant", "exact"):
        if way == "exact" and network.name == "mobilenet_v3_small":
            continue  # PyTorch has no second derivative of Hardsigmoid; test_attack_graph has differences
        _, got = gradient_of(attack_graph(file, way=way), images, labels)
        want = by_autograd(network.model, way, images, labels, eta=0.7)
        assert cosines(got, want).min() > 0.99, way


def _differences(
    model: nn.Module, graphs: dict[str, onnx.ModelProto], draw: int, batch: int, size: int
) -> list[str]:
    """How each graph's saliency differs from float64 on one draw of images, if it is out of bounds."""
    x = np.random.default_rng(draw).normal(size=(batch, 3, size, size)).astype(np.float32)
    want_logits, want = saliency64(model, x)
    found = []
    for target, graph in graphs.items():
        _, saliency, plain = run(graph, image=x)
        assert (plain.argmax(1) == want_logits.argmax(1)).all()
        a, b = saliency.reshape(batch, -1).astype(np.float64), want.reshape(batch, -1)
        cosine = ((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min()
        error = (np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)).max()
        if not (cosine >= 0.9999 and error <= 1e-2):
            found.append(f"draw {draw}, {target}: cosine {cosine:.6f}, relative L2 error {error:.2g}")
    return found
