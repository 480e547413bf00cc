"""Engines of classifiers of many families in every precision, through the pass that the export uses."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision

from sad_deploy.models import build_model
from sad_export import GraphOptions
from sad_export.graph.values import shape_of
from sad_export.graph.write import to_proto
from sad_export.precision import gradient_scales, lower
from sad_export.tensorrt import build_engine
from tests.support.models import forward_onnx, randomised, two_pass_graph

trt = pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx; the test install has it")

MODELS = [
    "densenet121",
    "efficientnet_b0",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
]
DEMO = "digits"
PRECISIONS = ["fp32", "fp16", "bf16", "int8"]
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@functools.cache
def forward(name: str) -> onnx.ModelProto:
    """The forward graph of a classifier with random weights, exported once for all precisions."""
    torch.manual_seed(0)
    if name == DEMO:
        return forward_onnx(randomised(build_model(DEMO, 10)), (1, 16, 16))
    return forward_onnx(randomised(torchvision.models.get_model(name, weights=None)), (3, 64, 64))


def graph_in(precision: str, name: str) -> onnx.ModelProto:
    """The two-pass graph as the export writes it."""
    options = GraphOptions(precision)
    graph = two_pass_graph(forward(name), options, eta=0.05)
    if options.variant.is_fp32:
        return to_proto(graph)
    _, *chw = shape_of(graph.graph.inputs[0])
    images = np.random.default_rng(0).random((2, *chw), dtype=np.float32)
    scales = gradient_scales(graph, images)
    return to_proto(lower(graph, options.variant, gradient_scales=scales, images=images).graph)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MODELS, DEMO])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_is_built(name: str, precision: str, tmp_path: Path) -> None:
    weights = sum(len(tensor.raw_data) for tensor in forward(name).graph.initializer)
    onnx.save(graph_in(precision, name), str(tmp_path / "m.onnx"))
    info = build_engine(tmp_path / "m.onnx", tmp_path / "m.plan", flavor="rtx", batch=(1, 4, 8))
    assert info.precision == precision
    assert info.outputs == ("logits", "saliency", "plain_logits")
    assert info.bytes > 0.95 * weights * BYTES[precision] / 4
    runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
    header = (tmp_path / "m.plan").read_bytes()[: runtime.engine_header_size]
    assert runtime.get_engine_validity(header)[1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_keeps_one_copy_of_each_weight(precision: str, tmp_path: Path) -> None:
    """Two passes of a resnet50 and a backward in at most 1.10 times the engine of one pass."""
    both, one = tmp_path / "both.onnx", tmp_path / "one.onnx"
    onnx.save(graph_in(precision, "resnet50"), str(both))
    onnx.utils.extract_model(str(both), str(one), ["image"], ["plain_logits"])
    size = {path: build_engine(path, path.with_suffix(".plan"), flavor="rtx").bytes for path in (both, one)}
    assert size[both] <= 1.1 * size[one]
