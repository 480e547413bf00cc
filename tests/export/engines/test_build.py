"""Real engines, built with TensorRT for RTX on a machine without a GPU."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx
import pytest

from sad_export import GraphOptions, two_pass
from sad_export.graph.write import to_proto
from sad_export.precision import lower
from sad_export.tensorrt import EngineError, UnbuildableError, build_engine, choose_flavor
from sad_runtime.devices import cuda_devices
from sad_runtime.errors import BackendError, MissingExtraError
from tests.support.models import forward_onnx, small_cnn, two_pass_graph

trt = pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx; the test install has it")


def test_an_engine_is_built_and_described(graph_path: Path, tmp_path: Path) -> None:
    info = build_engine(graph_path, tmp_path / "model.rtx.plan", flavor="rtx", batch=(1, 4, 16))
    plan = (tmp_path / "model.rtx.plan").read_bytes()
    sidecar = json.loads((tmp_path / "model.rtx.json").read_text())
    assert len(plan) == info.bytes > 1000
    assert sidecar["engine_sha256"] == hashlib.sha256(plan).hexdigest()
    assert sidecar["onnx_sha256"] == hashlib.sha256(graph_path.read_bytes()).hexdigest()
    assert sidecar["version"] == trt.__version__
    assert sidecar["precision"] == "fp32"
    assert sidecar["batch"] == [1, 4, 16]
    assert sidecar["outputs"] == ["logits", "saliency", "plain_logits"]
    assert sidecar["targets"] == ["sm_80 and newer"]
    assert (sidecar["tf32"], sidecar["from_cache"]) == (False, False)


def test_tensorrt_reads_the_header_of_the_plan(graph_path: Path, tmp_path: Path) -> None:
    """It can do so without a GPU: nothing may precede the header, and zeros are a malformed engine."""
    build_engine(graph_path, tmp_path / "m.plan", flavor="rtx")
    runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
    size = runtime.engine_header_size
    _, complaints = runtime.get_engine_validity((tmp_path / "m.plan").read_bytes()[:size])
    malformed, its_complaints = runtime.get_engine_validity(b"\0" * size)
    assert complaints == 0
    assert malformed == trt.EngineValidity.INVALID
    assert its_complaints != 0


@pytest.mark.parametrize("normalization", ["rms", "linf", "sign"])
@pytest.mark.parametrize("conv_gradient", ["convtranspose", "conv"])
def test_every_form_of_the_graph_builds(normalization: str, conv_gradient: str, tmp_path: Path) -> None:
    graph = two_pass(
        forward_onnx(small_cnn()),
        eta=0.3,
        normalization=normalization,
        conv_gradient=conv_gradient,
        clip=(-2.0, 2.0),
    )
    onnx.save(graph, str(tmp_path / "m.onnx"))
    assert build_engine(tmp_path / "m.onnx", tmp_path / "m.plan", flavor="rtx").bytes > 1000


def test_a_refused_operator_is_named(tmp_path: Path) -> None:
    """MaxPool with Indices, which TensorRT's parser refuses."""
    pool = onnx.helper.make_node("MaxPool", ["image"], ["y", "i"], kernel_shape=[2, 2], name="the_pool")
    graph = onnx.helper.make_graph(
        [pool],
        "g",
        [onnx.helper.make_tensor_value_info("image", 1, ["N", 1, 4, 4])],
        [onnx.helper.make_tensor_value_info("y", 1, None), onnx.helper.make_tensor_value_info("i", 7, None)],
    )
    onnx.save(
        onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)]),
        str(tmp_path / "m.onnx"),
    )
    with pytest.raises(EngineError, match=r"the_pool.*MaxPool"):
        build_engine(tmp_path / "m.onnx", tmp_path / "m.plan", flavor="rtx")
    assert not (tmp_path / "m.plan").exists()


def test_a_node_without_a_kernel_is_named(tmp_path: Path) -> None:
    """Deconvolution in bf16, in place of a Conv of 8 channels to 8."""
    options = GraphOptions("bf16")
    lowered = lower(two_pass_graph(forward_onnx(small_cnn()), options, eta=0.3), options.variant)
    graph = to_proto(lowered.graph)
    (node,) = [node for node in graph.graph.node if node.name == "second/node_conv2d_2"]
    node.op_type, node.name = "ConvTranspose", "the_deconvolution"
    onnx.save(graph, str(tmp_path / "m.onnx"))
    with pytest.raises(UnbuildableError, match=r"at node 'the_deconvolution' \(ConvTranspose\)") as caught:
        build_engine(tmp_path / "m.onnx", tmp_path / "m.plan", flavor="rtx")
    assert "--conv-gradient conv" in str(caught.value.hint)
    assert not (tmp_path / "m.plan").exists()


def test_the_log_is_handed_on_from_info_on(graph_path: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    build_engine(graph_path, tmp_path / "m.plan", flavor="rtx", log=lines.append)
    assert any(line.startswith("info: Detected 1 inputs and 3 output") for line in lines)
    assert not any(line.startswith("verbose") for line in lines)


@pytest.mark.parametrize("batch", [(0, 1, 2), (4, 2, 8), (1, 8, 4)])
def test_a_profile_out_of_order_is_refused(
    batch: tuple[int, int, int], graph_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="ascending order"):
        build_engine(graph_path, tmp_path / "m.plan", flavor="rtx", batch=batch)


def test_auto_takes_the_flavor_that_works_here() -> None:
    expected = "tensorrt" if cuda_devices().count and _installed("tensorrt") else "rtx"
    assert choose_flavor("auto") == expected


def test_a_missing_package_names_its_extra() -> None:
    if _installed("tensorrt"):
        pytest.skip("enterprise TensorRT is installed")
    with pytest.raises(MissingExtraError) as caught:
        choose_flavor("tensorrt")
    assert caught.value.hint == 'pip install "sad-deploy[tensorrt]"'


def test_enterprise_without_a_gpu_points_to_rtx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in package: only that one is installed matters here, not what it does."""
    if cuda_devices().count:
        pytest.skip("this machine has a GPU")
    (tmp_path / "tensorrt.py").write_text("__version__ = '11.0'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError, match="on the GPU that it will run on") as caught:
        choose_flavor("tensorrt")
    assert "--flavor rtx" in str(caught.value.hint)


def _installed(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None
