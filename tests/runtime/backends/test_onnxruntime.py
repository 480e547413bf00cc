from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sad_runtime.backends.binding import Bindings
from sad_runtime.backends.onnxruntime import (
    OnnxRuntimeBackend,
    Provider,
    open_cuda_session,
    provider_problem,
)
from sad_runtime.devices import cuda_devices
from sad_runtime.errors import BackendError, BundleError
from tests.support.tiny_bundle import LinearModel, two_pass_graph

no_gpu = pytest.mark.skipif(cuda_devices().count > 0, reason="what is said where there is no GPU")


def test_outputs_equal_the_float64_reference(model: LinearModel) -> None:
    images = np.random.default_rng(1).random((5, 3, 8, 8), dtype=np.float32)
    with OnnxRuntimeBackend(two_pass_graph(model).SerializeToString(), Provider.CPU) as backend:
        assert backend.name == "cpu"
        assert backend.input_shape == (3, 8, 8)
        assert backend.output_names == ("logits", "saliency", "plain_logits")
        assert backend.max_batch is None
        run = backend.run(images, ("saliency", "logits", "plain_logits"))
    logits, saliency, plain = model.two_pass(images)
    np.testing.assert_allclose(run["logits"], logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run["plain_logits"], plain, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(run["saliency"], saliency)


def test_only_the_outputs_asked_for_are_returned(model: LinearModel) -> None:
    with OnnxRuntimeBackend(two_pass_graph(model).SerializeToString(), Provider.CPU) as backend:
        assert set(backend.run(np.zeros((1, 3, 8, 8), np.float32), ("saliency",))) == {"saliency"}


def graph_with_input(shape: list[int | str], name: str = "image") -> bytes:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], ["logits"])],
        "g",
        [info(name, TensorProto.FLOAT, shape)],
        [info("logits", TensorProto.FLOAT, shape)],
    )
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (graph_with_input(["N", 3, 8, 8], "x"), "must have an input 'image'"),
        (graph_with_input(["N", 3, "H", "W"]), "C, H, W static"),
        (graph_with_input(["N", 3]), "of shape"),
        (graph_with_input([4, 3, 8, 8]), "batch size is fixed to 4"),
    ],
)
def test_graph_of_another_form_is_refused(graph: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        OnnxRuntimeBackend(graph, Provider.CPU)


@pytest.mark.parametrize("graph", [b"", b"not a graph", graph_with_input(["N", 1, 1, 1])[:-30]])
def test_bytes_that_are_no_graph_are_one_line(graph: bytes) -> None:
    with pytest.raises(BackendError, match="cannot open the graph") as caught:
        OnnxRuntimeBackend(graph, Provider.CPU)
    assert "\n" not in caught.value.message


def test_batch_that_cannot_be_run_is_one_line(model: LinearModel) -> None:
    broken = two_pass_graph(model)
    # A row of the weight that there is not: nothing notices before it runs.
    gather = next(node for node in broken.graph.node if node.op_type == "Gather")
    gather.input[1] = "beyond"
    beyond = onnx.numpy_helper.from_array(np.array([99, 99], np.int64), "beyond")
    broken.graph.initializer.append(beyond)
    backend = OnnxRuntimeBackend(broken.SerializeToString(), Provider.CPU)
    with pytest.raises(BackendError, match="the cpu backend failed on a batch of 2") as caught:
        backend.run(np.zeros((2, 3, 8, 8), np.float32), ("logits",))
    assert "\n" not in caught.value.message


def test_cpu_loads_everywhere() -> None:
    assert provider_problem(Provider.CPU) is None


@no_gpu
def test_cuda_without_a_gpu_says_so() -> None:
    problem = cuda_devices().problem
    assert provider_problem(Provider.CUDA) == f"the cuda backend needs an NVIDIA GPU: {problem}"


@no_gpu
def test_cuda_that_does_not_load_is_an_error_with_onnxruntimes_own_reason(
    model: LinearModel, capfd: pytest.CaptureFixture[str]
) -> None:
    """Past the check for a GPU: onnxruntime itself would run on the CPU and only log why."""
    with pytest.raises(BackendError) as caught:
        open_cuda_session(two_pass_graph(model).SerializeToString())
    assert caught.value.message.startswith("the cuda backend did not load: ")
    assert "gave no reason" not in caught.value.message
    assert "\n" not in caught.value.message
    written = capfd.readouterr()
    assert written.out == ""  # results go there
    assert written.err == ""


def test_short_gpu_memory_halves_the_batch_and_changes_no_result(model: LinearModel) -> None:
    """On the CPU, where a stand-in for the GPU's buffers fails as onnxruntime does there."""
    notices: list[str] = []
    tried: list[int] = []

    class ShortOfMemory(Bindings):
        def run(self, images: Any, outputs: Sequence[str]) -> Any:
            tried.append(len(images))
            if len(images) > 3:
                raise RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc")
            return super().run(images, outputs)

    graph = two_pass_graph(model).SerializeToString()
    images = np.random.default_rng(1).random((7, 3, 8, 8), dtype=np.float32)
    with OnnxRuntimeBackend(graph, Provider.CPU, notice=notices.append) as backend:
        expected = backend.run(images, ("saliency", "logits"))
        # A GPU whose memory is short is not at hand: what it would do stands in its place.
        backend._bindings = ShortOfMemory(backend._session, "cpu")
        for _ in range(2):
            run = backend.run(images, ("saliency", "logits"))
            np.testing.assert_array_equal(run["saliency"], expected["saliency"])
            np.testing.assert_allclose(run["logits"], expected["logits"], rtol=1e-5, atol=1e-5)
        assert backend.max_batch == 3
    assert tried == [7, 3, 3, 1, 3, 3, 1]
    assert notices == ["GPU memory is short: going on with batches of 3"]
