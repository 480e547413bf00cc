"""Networks without BatchNorm: ViT, Swin and ConvNeXt of torchvision, small, as PyTorch exports them."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig

from sad_export import GraphError, attribution_graph, input_gradient
from tests.support.differentiate import run
from tests.support.models import forward_onnx
from tests.support.torch_gradient import saliency64

IMAGES = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)


def vit() -> nn.Module:
    return VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)


def swin() -> nn.Module:
    return SwinTransformer([2, 2], 12, [2, 2], [2, 4], [4, 4], num_classes=5)


def convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 2)], layer_scale=1.0, num_classes=5)


@functools.cache
def network(name: str) -> tuple[nn.Module, onnx.ModelProto]:
    torch.manual_seed(0)
    model = {"vit": vit, "swin": swin, "convnext": convnext}[name]().eval()
    for parameter in model.parameters():  # what starts as zeros or ones would hide much
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model, forward_onnx(model, (3, 32, 32))


@pytest.mark.parametrize("target", ["portable", "cpu"])
@pytest.mark.parametrize("name", ["vit", "swin", "convnext"])
def test_the_gradient_is_autograds(name: str, target: str) -> None:
    model, forward = network(name)
    logits, gradient = run(input_gradient(forward, target=target), x=IMAGES)
    want_logits, want = saliency64(model, IMAGES)
    np.testing.assert_allclose(logits, want_logits, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(gradient, want, rtol=1e-2, atol=1e-3 * np.abs(want).max())


@pytest.mark.parametrize("method", ["integrated", "smoothgrad"])
@pytest.mark.parametrize("name", ["vit", "swin", "convnext"])
def test_points_in_the_batch_go_through_attention_and_windows(name: str, method: str) -> None:
    model, forward = network(name)
    settings = {"steps": 48} if method == "integrated" else {"samples": 2, "noise": 1e-4}
    logits, found = run(attribution_graph(forward, method, **settings), x=IMAGES)
    if method == "smoothgrad":  # hardly any noise: the gradient
        want = saliency64(model, IMAGES)[1]
        np.testing.assert_allclose(found, want, rtol=5e-2, atol=1e-2 * np.abs(want).max())
        return
    labels = logits.argmax(1)
    with torch.no_grad():
        at_zero = model(torch.zeros(1, 3, 32, 32)).numpy()[0, labels]
    difference = logits[np.arange(3), labels] - at_zero
    np.testing.assert_allclose(found.sum((1, 2, 3)), difference, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("name", "shape"), [("swin", "(N, 24, 8, 8)"), ("convnext", "(N, 16, 4, 4)")])
def test_gradcam_finds_what_the_head_pools(name: str, shape: str) -> None:
    said: list[str] = []
    graph = attribution_graph(network(name)[1], "gradcam", notice=said.append)
    (line,) = said
    assert line.endswith(shape)
    (_, heatmap) = run(graph, x=IMAGES)
    assert heatmap.shape == (3, 1, 32, 32)


def test_gradcam_of_a_vit_is_refused_by_name_unless_a_map_is_named() -> None:
    _, forward = network("vit")
    with pytest.raises(GraphError, match="networks of tokens, such as ViT, have none") as caught:
        attribution_graph(forward, "gradcam")
    assert "--at NAME" in str(caught.value.hint)
    convolution = next(node for node in forward.graph.node if node.op_type == "Conv")
    (_, heatmap) = run(attribution_graph(forward, "gradcam", at=convolution.output[0]), x=IMAGES)
    assert heatmap.shape == (3, 1, 32, 32)
