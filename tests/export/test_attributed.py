"""Grad-CAM, integrated gradients and SmoothGrad against PyTorch's autograd and their own equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from sad_export import GraphError, attribution_graph, input_gradient
from sad_export.attributed import bilinear
from sad_export.points import noise_pool, noise_stride
from sad_runtime.choices import Method
from sad_runtime.errors import UserError
from tests.support.differentiate import Array, run
from tests.support.graphs import classifier
from tests.support.models import forward_onnx, small_cnn

IMAGES = np.random.default_rng(0).random((4, 3, 16, 16), dtype=np.float32)
LABELS = np.array([0, 3, 1, 3])
COTANGENTS = np.random.default_rng(1).standard_normal((4, 5)).astype(np.float32)
FURTHER: dict[str, dict[str, Array]] = {
    "label": {"label": LABELS},
    "loss": {"label": LABELS},
    "cotangent": {"cotangent": COTANGENTS},
}
OBJECTIVES = ["largest", "2", "label", "cotangent", "loss"]


def objective(model: nn.Module, of: str) -> Any:
    """Images → the sum of what is differentiated; ``largest`` is the class of IMAGES themselves."""
    classes = model(torch.from_numpy(IMAGES).double()).argmax(1)

    def of_images(x: torch.Tensor) -> torch.Tensor:
        logits = model(x)
        if of == "loss":
            return functional.cross_entropy(logits, torch.from_numpy(LABELS), reduction="sum")
        if of == "cotangent":
            return (logits * torch.from_numpy(COTANGENTS)).sum()
        index = {"largest": classes, "label": torch.from_numpy(LABELS), "2": torch.full((4,), 2)}[of]
        return logits.gather(1, index[:, None]).sum()

    return of_images


def gradient_of(function: Any, x: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(function(x), x)
    return gradient


def attributed(method: str, of: str = "largest", model: nn.Module | None = None, **settings: Any) -> Array:
    graph = attribution_graph(
        forward_onnx(model or small_cnn()), method, of=of, notice=lambda line: None, **settings
    )
    assert {node.domain for node in graph.graph.node} == {""}
    _, found = run(graph, x=IMAGES, **FURTHER.get(of, {}))
    return found


@pytest.mark.parametrize("target", ["portable", "cpu"])
@pytest.mark.parametrize("of", [of for of in OBJECTIVES if of != "loss"])
def test_gradcam_is_its_equation_by_autograd(of: str, target: str) -> None:
    model = small_cnn().double()
    assert isinstance(model, nn.Sequential)
    activation = model[:5](torch.from_numpy(IMAGES).double()).detach()
    head = model[5:]
    classes = head(activation).argmax(1)
    index = {"largest": classes, "label": torch.from_numpy(LABELS), "2": torch.full((4,), 2)}

    def function(a: torch.Tensor) -> torch.Tensor:
        if of == "cotangent":
            return (head(a) * torch.from_numpy(COTANGENTS)).sum()
        return head(a).gather(1, index[of][:, None]).sum()

    weights = gradient_of(function, activation).mean((2, 3), keepdim=True)
    cam = (weights * activation).sum(1, keepdim=True).relu()
    want = functional.interpolate(cam, size=(16, 16), mode="bilinear", align_corners=False).detach().numpy()
    found = attributed("gradcam", of, target=target)
    assert found.shape == (4, 1, 16, 16)
    assert want.any()
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4 * want.max())


@pytest.mark.parametrize("have", [(1, 1), (2, 3), (7, 7), (13, 5)])
@pytest.mark.parametrize("want", [(7, 7), (16, 31), (224, 224)])
def test_the_resize_is_torchs_bilinear_one(have: tuple[int, int], want: tuple[int, int]) -> None:
    x = np.random.default_rng(0).random((1, 1, *have))
    rows, columns = bilinear(have, want)
    expected = functional.interpolate(torch.from_numpy(x), size=want, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(rows @ x @ columns.T, expected, atol=1e-12)


@pytest.mark.parametrize("target", ["portable", "cpu"])
@pytest.mark.parametrize("of", OBJECTIVES)
def test_integrated_gradients_sum_to_the_difference_from_the_baseline(of: str, target: str) -> None:
    """Completeness: Σ attribution = f(x) − f(x'), image by image."""
    found = attributed("integrated", of, target=target, steps=200, baseline=(0.4, 0.5, 0.6))
    model = small_cnn().double()
    baseline = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64).reshape(1, 3, 1, 1).expand(4, 3, 16, 16)
    function = objective(model, of)
    difference = float((function(torch.from_numpy(IMAGES).double()) - function(baseline)).detach())
    np.testing.assert_allclose(found.sum(), difference, rtol=2e-2, atol=2e-4)
    rough = attributed("integrated", of, target=target, steps=1, baseline=(0.4, 0.5, 0.6)).sum()
    assert abs(rough - difference) > abs(found.sum() - difference)


@pytest.mark.parametrize("of", OBJECTIVES)
def test_integrated_gradients_are_autograds_along_the_line(of: str) -> None:
    found = attributed("integrated", of, steps=8)
    x = torch.from_numpy(IMAGES).double()
    function = objective(small_cnn().double(), of)
    points, weights = np.polynomial.legendre.leggauss(8)
    want = sum(w / 2 * gradient_of(function, x * (p + 1) / 2) for p, w in zip(points, weights, strict=True))
    want = (want * x).numpy()  # type: ignore[union-attr]
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("of", OBJECTIVES)
def test_smoothgrad_is_the_mean_of_autograds_over_the_same_noise(of: str) -> None:
    found = attributed("smoothgrad", of, samples=5, noise=0.1, noise_seed=3)
    x = torch.from_numpy(IMAGES).double()
    sigma = 0.1 * (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))
    pool, stride = noise_pool(3, (3, 16, 16), 5), noise_stride((3, 16, 16), 5)
    function = objective(small_cnn().double(), of)
    cut = [torch.from_numpy(pool[k * stride : k * stride + 768].reshape(1, 3, 16, 16)) for k in range(5)]
    want = (sum(gradient_of(function, x + sigma * each) for each in cut) / 5).numpy()  # type: ignore[union-attr]
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


def test_the_noise_is_standard_and_its_samples_are_independent_at_each_pixel() -> None:
    pool, stride = noise_pool(0, (3, 32, 32), 16), noise_stride((3, 32, 32), 16)
    samples = np.stack([pool[k * stride : k * stride + 3072] for k in range(16)])
    assert abs(samples.mean()) < 0.05
    assert abs(samples.std() - 1) < 0.05
    correlations = np.corrcoef(samples) - np.eye(16)
    assert np.abs(correlations).max() < 5 / np.sqrt(3072)
    # The mean over 16 samples has a quarter of their standard deviation.
    assert abs(samples.mean(0).std() - 0.25) < 0.02


def test_another_seed_is_another_noise_and_the_same_one_the_same_graph() -> None:
    first, second = (attributed("smoothgrad", noise_seed=seed) for seed in (0, 1))
    assert not np.allclose(first, second)
    forward = forward_onnx(small_cnn())
    a, b = (attribution_graph(forward, "smoothgrad").SerializeToString() for _ in range(2))
    assert a == b


def test_saliency_is_the_graph_of_input_gradient() -> None:
    forward = forward_onnx(small_cnn())
    same = attribution_graph(forward, "saliency", of=2).SerializeToString()
    assert same == input_gradient(forward, of=2).SerializeToString()


@pytest.mark.parametrize("method", list(Method))
def test_every_batch_gives_each_image_the_same(method: str) -> None:
    graph = attribution_graph(forward_onnx(small_cnn()), method, notice=lambda line: None)
    whole = run(graph, x=IMAGES)
    for i in range(len(IMAGES)):
        for one, all_ in zip(run(graph, x=IMAGES[i : i + 1]), whole, strict=True):
            np.testing.assert_allclose(one[0], all_[i], rtol=1e-4, atol=1e-6)
    logits = graph.graph.output[0]
    batch, classes = (dim.dim_param or dim.dim_value for dim in logits.type.tensor_type.shape.dim)
    assert (batch, classes) == (graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param, 5)


@pytest.mark.parametrize("method", ["integrated", "smoothgrad"])
def test_each_weight_is_there_once_however_many_points(method: str) -> None:
    forward = forward_onnx(small_cnn())
    name = "steps" if method == "integrated" else "samples"
    few, many = (attribution_graph(forward, method, **{name: n}) for n in (2, 64))
    kernels = [array for array in many.graph.initializer if len(array.dims) == 4 and array.dims[0] > 1]
    assert len(kernels) <= sum(node.op_type == "Conv" for node in forward.graph.node)
    assert many.ByteSize() - few.ByteSize() < 62 * 400  # a Slice each; an image of float32 would be 3072


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("saliency", {"steps": 3}, "--method saliency takes no --steps"),
        ("smoothgrad", {"at": "relu"}, "--method smoothgrad takes no --at"),
        ("integrated", {"noise_seed": 3}, "--method integrated takes no --noise-seed"),
        ("gradcam", {"of": "loss"}, "Grad-CAM shows what speaks for a class"),
        ("gradcam", {"at": "view"}, r"view is \(N, 8\), and Grad-CAM needs a map"),
        ("gradcam", {"at": "mean"}, r"mean is \(N, 8, 1, 1\), and Grad-CAM needs a map"),
        ("integrated", {"steps": 0}, "steps must be at least 1"),
        ("integrated", {"baseline": (1, 2)}, "a baseline is one number or 3, one a channel"),
        ("smoothgrad", {"noise": 0}, "noise must be a positive number"),
        ("gradcat", {}, "no method 'gradcat'"),
        ("integrated", {"of": 5}, "no class 5 among 5"),
    ],
)
def test_what_makes_no_sense_is_one_line(method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        attribution_graph(forward_onnx(small_cnn()), method, **settings)


@pytest.mark.parametrize("method", ["integrated", "smoothgrad"])
def test_a_fixed_batch_has_no_room_for_points(method: str) -> None:
    def fixes(nodes: list[onnx.NodeProto], constants: dict[str, Array]) -> None:
        """The two images of the batch are exchanged."""
        nodes[-1].output[:] = ["z"]
        constants["swap"] = np.array([1, 0])
        nodes.append(onnx.helper.make_node("Gather", ["z", "swap"], ["y"], axis=0))

    with pytest.raises(GraphError, match="its batch is fixed to 2"):
        attribution_graph(classifier(fixes, image=(2, 3, 12, 12)), method, notice=lambda line: None)
