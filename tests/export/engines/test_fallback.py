"""``--conv-gradient auto`` falls back to ``conv`` where TensorRT has no kernel; nothing else does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest

from sad_export.defend import defend
from sad_export.job import GraphOptions
from sad_export.tensorrt import BuildOptions, EngineRequest, UnbuildableError
from sad_runtime.bundle.read import sha256
from tests.support.models import forward_onnx, small_cnn
from tests.support.without_deconvolution import without_deconvolution

trt = pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx; the test install has it")
REQUEST = EngineRequest(flavor="rtx", batch=(1, 2, 4))


@pytest.fixture
def forward(tmp_path: Path) -> Path:
    path = tmp_path / "forward.onnx"
    onnx.save(forward_onnx(small_cnn()), str(path))
    return path


@pytest.fixture
def _without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", without_deconvolution(trt))


@pytest.mark.usefixtures("_without_kernels")
def test_auto_is_written_again_with_conv_and_verified(forward: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "out.onnx"
    made = defend(forward, out, eta=0.1, engine=REQUEST, status=said.append)
    assert made.conv_gradient == "conv"
    assert made.verification.slope_error < 0.05
    (line,) = [line for line in said if "--conv-gradient conv instead" in line]
    assert "at node 'backward/ConvTranspose" in line
    graph = onnx.load(str(out))
    assert "ConvTranspose" not in {node.op_type for node in graph.graph.node}
    assert {p.key: p.value for p in graph.metadata_props}["sad_deploy.conv_gradient"] == "conv"
    sidecar = json.loads((tmp_path / "out.rtx.json").read_text())
    assert sidecar["onnx_sha256"] == sha256(out)


@pytest.mark.usefixtures("_without_kernels")
def test_a_conv_gradient_that_was_asked_for_never_falls_back(forward: Path, tmp_path: Path) -> None:
    with pytest.raises(UnbuildableError, match="no kernel for operation backward/ConvTranspose"):
        defend(
            forward,
            tmp_path / "o.onnx",
            eta=0.1,
            options=GraphOptions(conv_gradient="convtranspose"),
            engine=REQUEST,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["forward.onnx"]


def test_a_failure_elsewhere_does_not_fall_back(forward: Path, tmp_path: Path) -> None:
    """On Turing, at the classifier's Gemm."""
    said: list[str] = []
    request = EngineRequest(flavor="rtx", options=BuildOptions(targets=("sm_75",)))
    with pytest.raises(UnbuildableError, match="FP32 GEMM"):
        defend(forward, tmp_path / "o.onnx", eta=0.1, engine=request, status=said.append)
    assert not [line for line in said if "conv" in line]
    assert [path.name for path in tmp_path.iterdir()] == ["forward.onnx"]
