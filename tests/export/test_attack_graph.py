"""Gradients of a loss of what a file computes: against double backward, differences, the file's logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from sad_export import GraphError, attack_graph, two_pass
from sad_export.graph.write import to_proto
from sad_export.job import GraphOptions
from sad_export.precision import write_verified
from sad_export.verify import run_graph
from sad_runtime.choices import Way
from sad_runtime.errors import UserError
from tests.support.differentiate import Array, cosines, run
from tests.support.models import forward_onnx, randomised, small_cnn, two_pass_graph

IMAGES = np.random.default_rng(0).random((4, 3, 16, 16), dtype=np.float32)
LABELS = np.array([0, 3, 1, 3])
ETA = 0.7


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x)


def smooth_cnn() -> nn.Module:
    """SiLU and a gate: S changes with x, so that holding it constant gives another gradient."""
    torch.manual_seed(0)
    return randomised(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.SiLU(), SqueezeExcitation(6),
            nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 5),
        )
    )  # fmt: skip


def by_autograd(model: nn.Module, way: str, images: Array, labels: Array, **defence: Any) -> Array:
    """∂ cross-entropy / ∂image in float64; for the exact way by double backward."""
    wide = model.double()
    x = torch.from_numpy(images).double().requires_grad_()
    if way == "plain":
        logits = wide(x)
    else:
        plain = wide(x)
        top = plain.max(1).values.sum()
        (s,) = torch.autograd.grad(top, x, create_graph=way == "exact")
        logits = wide(_mixed(x, s if way == "exact" else s.detach(), **defence))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    model.float()
    return np.asarray(gradient)


def _mixed(x: torch.Tensor, s: torch.Tensor, eta: float, normalization: str = "none") -> torch.Tensor:
    if normalization == "rms":
        s = s / s.square().mean((1, 2, 3), keepdim=True).sqrt()
    return x + eta * s


def gradient_of(
    graph: onnx.ModelProto, images: Array = IMAGES, labels: Array = LABELS
) -> tuple[Array, Array]:
    logits, gradient = run(graph, **{graph.graph.input[0].name: images}, label=labels)
    return logits, gradient


@pytest.mark.parametrize("target", ["portable", "cpu"])
@pytest.mark.parametrize("normalization", ["none", "rms"])
@pytest.mark.parametrize("network", [small_cnn, smooth_cnn])
@pytest.mark.parametrize("way", Way)
def test_each_way_is_autograds(
    way: Way, network: Callable[[], nn.Module], normalization: str, target: str
) -> None:
    model = network()
    file = two_pass(forward_onnx(model), eta=ETA, normalization=normalization, target=target)
    _, got = gradient_of(attack_graph(file, way=way, target=target))
    want = by_autograd(model, way, IMAGES, LABELS, eta=ETA, normalization=normalization)
    assert cosines(got, want).min() > 0.9999
    np.testing.assert_allclose(got, want, rtol=5e-3, atol=1e-3 * np.abs(want).max())


def test_holding_the_saliency_constant_is_another_gradient_where_the_network_is_smooth() -> None:
    file = two_pass(forward_onnx(smooth_cnn()), eta=ETA, normalization="rms")
    constant, exact = (gradient_of(attack_graph(file, way=way))[1] for way in ("constant", "exact"))
    assert cosines(constant, exact).max() < 0.99


def test_the_exact_way_is_the_slope_of_the_files_own_loss() -> None:
    file = two_pass(forward_onnx(smooth_cnn()), eta=ETA, normalization="rms")
    _, gradient = gradient_of(attack_graph(file, way="exact"))
    direction = np.sign(gradient).astype(np.float32)

    step = 2e-3
    more, less = (_cross_entropy(run(file, image=IMAGES + sign * step * direction)[0]) for sign in (1, -1))
    slope = (more - less) / (2 * step)
    np.testing.assert_allclose((gradient * direction).sum((1, 2, 3)), slope, rtol=2e-2)


def test_any_loss_by_its_cotangent() -> None:
    file = two_pass(forward_onnx(small_cnn()), eta=ETA)
    graph = attack_graph(file, of="cotangent")
    logits, want = gradient_of(attack_graph(file))
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    _, got = run(graph, image=IMAGES, cotangent=(softmax - np.eye(5)[LABELS]).astype(np.float32))
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("way", Way)
def test_the_logits_are_the_files_own_and_the_batch_is_dynamic(way: Way) -> None:
    file = two_pass(forward_onnx(small_cnn()), eta=ETA)
    own = dict(zip([value.name for value in file.graph.output], run(file, image=IMAGES), strict=True))
    graph = attack_graph(file, way=way)
    for count in (1, 3, 4):
        logits, gradient = gradient_of(graph, IMAGES[:count], LABELS[:count])
        assert gradient.shape == IMAGES[:count].shape
        want = own["plain_logits" if way is Way.PLAIN else "logits"][:count]
        np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize(
    ("variant", "target", "least"),
    [("fp16", "portable", 0.995), ("int8", "portable", 0.8), ("int8", "cpu", 0.8)],
)
def test_lower_precision_is_attacked_as_it_is_shipped(
    variant: str, target: str, least: float, way: Way, tmp_path: Any
) -> None:
    """Nearly the gradient of float32; the logits are those of the file itself."""
    model = small_cnn()
    options = GraphOptions(precision=variant, target=target)
    whole = two_pass_graph(forward_onnx(model), options, eta=ETA)
    onnx.save(to_proto(whole.clone()), str(tmp_path / "f.onnx"))
    reference = run_graph(tmp_path / "f.onnx", IMAGES)
    path = tmp_path / "low.onnx"
    write_verified(
        whole, path, options.variant, IMAGES, reference, target=options.target, allow_inaccurate=True
    )
    logits, got = gradient_of(attack_graph(path, way=way))
    own = run_graph(path, IMAGES)
    # Wide of the file's rounding for fp16, which is attacked in float32; integers are exact.
    np.testing.assert_allclose(logits, own["plain_logits" if way is Way.PLAIN else "logits"], atol=2e-2)
    want = by_autograd(model, way, IMAGES, LABELS, eta=ETA)
    assert np.median(cosines(got, want)) > least


def test_a_classifier_is_attacked_the_plain_way_alone() -> None:
    forward = forward_onnx(small_cnn())
    _, got = gradient_of(attack_graph(forward, way="plain"))
    assert cosines(got, by_autograd(small_cnn(), "plain", IMAGES, LABELS)).min() > 0.9999
    for way in ("constant", "exact"):
        with pytest.raises(GraphError, match="no two-pass graph"):
            attack_graph(forward, way=way)


@pytest.mark.parametrize("wrong", [{"way": "sideways"}, {"of": "largest"}, {"target": "moon"}])
def test_a_wrong_word_is_said(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong.values()))):
        attack_graph(two_pass(forward_onnx(small_cnn()), eta=ETA), **wrong)


def test_hardswish_and_hardsigmoid_by_differences() -> None:
    """What PyTorch cannot differentiate twice."""
    torch.manual_seed(0)
    model = randomised(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.Hardswish(),
            nn.Conv2d(6, 6, 1), nn.Hardsigmoid(), nn.Conv2d(6, 8, 3, 2), nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
        )
    )  # fmt: skip
    file = two_pass(forward_onnx(model), eta=ETA, normalization="rms")
    _, gradient = gradient_of(attack_graph(file, way="exact"))
    rng = np.random.default_rng(3)
    step, slopes, want = 1e-3, [], []
    for _ in range(8):
        direction = rng.standard_normal(IMAGES.shape).astype(np.float32)
        ends = [_cross_entropy(run(file, image=IMAGES + sign * step * direction)[0]) for sign in (1, -1)]
        slopes.append((ends[0] - ends[1]) / (2 * step))
        want.append((gradient * direction).sum((1, 2, 3)))
    assert np.corrcoef(np.ravel(slopes), np.ravel(want))[0, 1] > 0.99


def _cross_entropy(logits: Array) -> Array:
    shifted = (logits - logits.max(1, keepdims=True)).astype(np.float64)
    return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(logits)), LABELS]
