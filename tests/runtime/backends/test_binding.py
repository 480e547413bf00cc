"""On the CPU, where a device's buffers are ordinary memory; tests/gpu does the same on CUDA."""

from __future__ import annotations

import numpy as np
import pytest

from sad_runtime.backends.binding import Bindings
from sad_runtime.backends.onnxruntime import OnnxRuntimeBackend, Provider, memory_is_short
from tests.support.tiny_bundle import LinearModel, two_pass_graph

ALL = ("plain_logits", "saliency", "logits")


@pytest.mark.parametrize("outputs", [ALL, ("saliency",), ("logits",)])
def test_bound_runs_equal_unbound_ones_in_any_order_of_batch_sizes(
    model: LinearModel, outputs: tuple[str, ...]
) -> None:
    graph = two_pass_graph(model).SerializeToString()
    rng = np.random.default_rng(0)
    with OnnxRuntimeBackend(graph, Provider.CPU) as backend:
        bindings = Bindings(backend._session, "cpu")  # bound to the very session of the unbound run
        earlier = []
        for count in (3, 1, 3, 2, 5, 4, 7, 1, 3):
            images = rng.random((count, 3, 8, 8), dtype=np.float32)
            run = bindings.run(images, outputs)
            assert list(run) == list(outputs)
            expected = backend.run(images, outputs)
            earlier.append((run, expected))
        # All of them at the end: later batches must not write into earlier results.
        for run, expected in earlier:
            for name in outputs:
                np.testing.assert_array_equal(run[name], expected[name])


def test_output_of_a_type_or_shape_that_is_not_fixed_is_allocated_by_onnxruntime(model: LinearModel) -> None:
    graph = two_pass_graph(model)
    for output in graph.graph.output:
        if output.name == "logits":
            output.type.tensor_type.shape.dim[1].dim_param = "K"
    images = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    with OnnxRuntimeBackend(graph.SerializeToString(), Provider.CPU) as backend:
        bindings = Bindings(backend._session, "cpu")  # bound to the very session of the unbound run
        for _ in range(2):
            run = bindings.run(images, ALL)
            np.testing.assert_array_equal(run["logits"], backend.run(images, ALL)["logits"])


@pytest.mark.parametrize(
    "text",
    [
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
        "Name:'x' Status Message: bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, "
        "bool) Failed to allocate memory for requested buffer of size 8388608000",
        "Available memory of 52428800 is smaller than requested bytes of 104857600",
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; file=cuda_allocator.cc ; line=34",
        "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
    ],
)
def test_onnxruntimes_words_for_short_memory_are_known(text: str) -> None:
    assert memory_is_short(text)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA failure 700: an illegal memory access was encountered ; GPU=0",
        "CUDA failure 209: no kernel image is available for execution on the device",
        "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: image",
    ],
)
def test_other_failures_are_not_taken_for_it(text: str) -> None:
    assert not memory_is_short(text)
