from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sad_runtime.backends import BackendOptions, open_backend
from sad_runtime.backends import openvino as module
from sad_runtime.backends.onnxruntime import OnnxRuntimeBackend, Provider
from sad_runtime.backends.openvino import PIECE, OpenVinoBackend
from sad_runtime.bundle import Bundle
from sad_runtime.choices import BackendChoice
from sad_runtime.errors import BackendError, BundleError
from sad_runtime.manifest import Graph
from tests.support.tiny_bundle import LinearModel, changed, two_pass_graph

openvino = pytest.importorskip("openvino", reason="needs the extra openvino; the test install has it")
OUTPUTS = ("logits", "saliency", "plain_logits")


@pytest.fixture
def graph(tmp_path: Path, model: LinearModel) -> Path:
    onnx.save(two_pass_graph(model), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def has_bf16() -> bool:
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.mark.parametrize("count", [1, 2, PIECE, PIECE + 1, 9 * PIECE + 3])
def test_any_batch_gives_what_onnxruntime_gives(graph: Path, count: int) -> None:
    """Image by image, however the batch is cut and whichever stream is done first."""
    images = np.random.default_rng(count).random((count, 3, 8, 8), dtype=np.float32)
    with OpenVinoBackend(graph) as backend, OnnxRuntimeBackend(graph, Provider.CPU) as other:
        assert backend.input_shape == (3, 8, 8)
        assert set(OUTPUTS) <= set(backend.output_names)
        for _ in range(2):
            got, want = backend.run(images, OUTPUTS), other.run(images, OUTPUTS)
            for name in OUTPUTS:
                np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-5)
        assert list(backend.run(images, ("saliency",))) == ["saliency"]


def test_results_are_arrays_of_their_own(graph: Path) -> None:
    images = np.random.default_rng(0).random((PIECE, 3, 8, 8), dtype=np.float32)
    with OpenVinoBackend(graph) as backend:
        first = backend.run(images, ("logits",))["logits"]
        kept = first.copy()
        backend.run(images[::-1].copy(), ("logits",))
        np.testing.assert_array_equal(first, kept)


def test_float32_is_float32(graph: Path, model: LinearModel) -> None:
    """Where the processor has bf16, OpenVINO would take it for float32 by itself."""
    images = np.random.default_rng(0).random((8, 3, 8, 8), dtype=np.float32)
    with OpenVinoBackend(graph) as backend:
        got = backend.run(images, ("plain_logits",))["plain_logits"]
    want = model.two_pass(images)[2]
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


def test_a_device_that_is_not_there_is_named_with_those_that_are(graph: Path) -> None:
    with pytest.raises(BackendError, match="no device 'NPU' here, only CPU") as caught:
        OpenVinoBackend(graph, device="NPU")
    assert caught.value.hint == "--device CPU"


@pytest.mark.skipif(has_bf16(), reason="this processor has bf16")
def test_a_precision_without_instructions_is_refused(graph: Path) -> None:
    with pytest.raises(BackendError, match="no bf16 instructions, so OpenVINO would compute in float32"):
        OpenVinoBackend(graph, precision="bf16")


def test_a_file_that_is_no_graph_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"cannot read model\.onnx") as caught:
        OpenVinoBackend(tmp_path / "model.onnx")
    assert "\n" not in caught.value.message


def test_an_input_of_another_name_is_refused(tmp_path: Path, model: LinearModel) -> None:
    other = two_pass_graph(model)
    other.graph.input[0].name = other.graph.node[0].input[0] = "x"
    onnx.save(other, tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="must have the one input 'image'"):
        OpenVinoBackend(tmp_path / "model.onnx")


def test_short_memory_halves_the_pieces_and_changes_no_result(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What OpenVINO raises where memory is short stands in its place."""
    notices: list[str] = []
    run = module._Requests.run

    def short_of_memory(self: Any, images: Any, outputs: Sequence[str]) -> Any:
        if self._size > 1:
            raise RuntimeError(
                "Exception from src/inference/src/cpp/infer_request.cpp:223:\nstd::bad_alloc\n"
            )
        return run(self, images, outputs)

    images = np.random.default_rng(0).random((6, 3, 8, 8), dtype=np.float32)
    with OpenVinoBackend(graph, notice=notices.append) as backend:
        want = backend.run(images, ("logits",))["logits"]
        monkeypatch.setattr(module._Requests, "run", short_of_memory)
        for _ in range(2):
            np.testing.assert_allclose(backend.run(images, ("logits",))["logits"], want, rtol=1e-5)
    assert notices == ["memory is short: going on with batches of 1"]


def test_a_graph_of_other_settings_than_the_manifests_is_refused(
    bundle_folder: Path, model: LinearModel
) -> None:
    other = two_pass_graph(model)
    onnx.helper.set_model_props(other, {"sad_deploy.eta": "0.7"})
    with changed(bundle_folder) as draft:
        onnx.save(other, draft.path("model.onnx"))
    with pytest.raises(BundleError, match=r"eta is 0\.7 in the graph and 0\.3 in the manifest"):
        open_backend(Bundle.open(bundle_folder), BackendChoice.OPENVINO)


def test_tf32_is_refused(bundle_folder: Path) -> None:
    with pytest.raises(BackendError, match="the openvino backend has no TF32"):
        open_backend(Bundle.open(bundle_folder), BackendChoice.OPENVINO, BackendOptions(tf32=True))


def test_each_backend_takes_the_form_that_suits_it(bundle_folder: Path, model: LinearModel) -> None:
    """A graph for onnxruntime's CPU beside the portable one, told apart by what they add to the logits."""
    for_cpu = two_pass_graph(model)
    last = for_cpu.graph.node[-1]
    last.op_type = "Neg"
    graphs = Bundle.open(bundle_folder).manifest.graphs
    with changed(
        bundle_folder, graphs=(*graphs, Graph("model.cpu.onnx", "fp32", "auto", "cpu", {}))
    ) as draft:
        onnx.save(for_cpu, draft.path("model.cpu.onnx"))
    images = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    want = model.two_pass(images)[0]
    for choice, sign in ((BackendChoice.CPU, -1), (BackendChoice.OPENVINO, 1)):
        with open_backend(Bundle.open(bundle_folder), choice).backend as backend:
            got = backend.run(images, ("logits",))["logits"]
        np.testing.assert_allclose(got, sign * want, rtol=1e-4, atol=1e-4)
