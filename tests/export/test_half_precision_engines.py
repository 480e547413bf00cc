"""Two-pass graphs in float16: TensorRT builds them, and no float32 is left inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from differentiate import run
from half_precision import in_half_precision
from models import forward_onnx, randomised, small_cnn
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from sad_export import two_pass
from sad_export.tensorrt import build_engine

pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx; the test install has it")

REPRESENTATIVES = ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "densenet121"]


@pytest.fixture(scope="module")
def small_forward() -> onnx.ModelProto:
    return forward_onnx(small_cnn())


def test_float32_is_left_at_the_border_only(small_forward: onnx.ModelProto) -> None:
    graph = onnx.shape_inference.infer_shapes(
        in_half_precision(two_pass(small_forward, eta=0.3)), strict_mode=True
    ).graph
    border = {value.name for value in [*graph.input, *graph.output]}
    floats = [v.name for v in graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT]
    assert [name for name in floats if name not in border] == []
    assert {tensor.data_type for tensor in graph.initializer} <= {TensorProto.FLOAT16, TensorProto.INT64}


def test_the_saliency_keeps_its_direction_in_half_precision(small_forward: onnx.ModelProto) -> None:
    """In ONNX's reference, which rounds every value; onnxruntime's CPU leaves some of them in float32."""
    images = np.random.default_rng(0).normal(size=(8, 3, 16, 16)).astype(np.float32)
    half: Any = ReferenceEvaluator(in_half_precision(two_pass(small_forward, eta=0.3)))
    (narrow,) = half.run(["saliency"], {"image": images})
    _, wide, _ = run(two_pass(small_forward, eta=0.3), image=images)
    a, b = narrow.reshape(8, -1), wide.reshape(8, -1)
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    assert np.median(cosines) >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_a_half_precision_engine_of_a_torchvision_classifier_builds(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    forward = forward_onnx(randomised(torchvision.models.get_model(name, weights=None)), (3, 64, 64))
    weights = sum(len(tensor.raw_data) for tensor in forward.graph.initializer)
    onnx.save(in_half_precision(two_pass(forward, eta=0.05)), str(tmp_path / "half.onnx"))
    assert (tmp_path / "half.onnx").stat().st_size < 0.6 * weights
    info = build_engine(tmp_path / "half.onnx", tmp_path / "half.plan", flavor="rtx", batch=(1, 4, 8))
    assert info.precision == "fp16"
    assert info.bytes > 0.5 * weights
