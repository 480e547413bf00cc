"""Engines of every flavor that runs here, against onnxruntime on the CPU."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from sad_runtime.backends.onnxruntime import OnnxRuntimeBackend
from sad_runtime.backends.tensorrt import TensorRTBackend
from sad_runtime.cuda import CudaRuntime, DeviceMemory
from sad_runtime.errors import BackendError, BundleError, OutOfDeviceMemoryError

from .conftest import OUTPUTS, PROFILE, Built, assert_close, images

pytestmark = pytest.mark.gpu


def opened(engine: Built, **options: Any) -> TensorRTBackend:
    return TensorRTBackend(engine.plan, engine.flavor, tf32=engine.info.tf32, **options)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_engine_equals_the_cpu_in_every_batch_size(
    engine: Built, cpu: OnnxRuntimeBackend, cuda_graphs: bool
) -> None:
    """Filled up, whole, and split; each several times, so that what was recorded is launched."""
    with opened(engine, cuda_graphs=cuda_graphs) as backend:
        assert backend.max_batch == PROFILE[2]
        assert backend.input_shape == (3, 16, 16)
        assert backend.output_names == OUTPUTS
        for seed, count in enumerate([1, 2, 3, 8, 8, 8, 9, 16, 17, 40, 40, 40, 5, 1, 1, 1, 3, 7, 6, 4, 2, 8]):
            batch = images(count, seed=seed)
            assert_close(backend.run(batch, OUTPUTS), cpu.run(batch, OUTPUTS), engine.tolerance)


@pytest.mark.parametrize("outputs", [("logits",), ("saliency",), ("plain_logits", "logits")])
def test_only_the_outputs_asked_for_are_returned(
    engine: Built, cpu: OnnxRuntimeBackend, outputs: tuple[str, ...]
) -> None:
    batch = images(17)
    with opened(engine) as backend:
        run = backend.run(batch, outputs)
    assert tuple(run) == outputs
    assert_close(run, cpu.run(batch, outputs), engine.tolerance)


def test_results_of_earlier_batches_are_not_written_to(engine: Built) -> None:
    with opened(engine) as backend:
        first = backend.run(images(8), OUTPUTS)
        kept = {name: values.copy() for name, values in first.items()}
        backend.run(images(17, seed=1), OUTPUTS)
    for name, values in kept.items():
        np.testing.assert_array_equal(first[name], values)


def test_compiled_kernels_are_kept_beside_the_engine_and_used_again(
    engine: Built, cpu: OnnxRuntimeBackend
) -> None:
    if not engine.flavor.differences.runtime_cache:
        pytest.skip(f"{engine.flavor.module} compiles no kernels when it runs")
    cache = engine.plan.with_suffix(".cache")
    batch = images(8)
    with opened(engine) as backend:
        backend.run(batch, OUTPUTS)
    assert cache.stat().st_size > 0
    with opened(engine) as backend:
        # Nothing public says whether TensorRT took the kernels from the cache.
        assert backend._execution is not None
        kernels = backend._execution._contexts._kernels
        assert kernels is not None
        assert kernels._kept == cache.read_bytes()  # TensorRT took them
        assert_close(backend.run(batch, OUTPUTS), cpu.run(batch, OUTPUTS), engine.tolerance)
    cache.write_bytes(b"damaged")
    with opened(engine) as backend:
        assert_close(backend.run(batch, OUTPUTS), cpu.run(batch, OUTPUTS), engine.tolerance)
    assert cache.read_bytes() != b"damaged"


def test_stale_and_damaged_engines_are_refused(engine: Built) -> None:
    sidecar = engine.plan.with_suffix(".json")
    sidecar.write_text(dataclasses.replace(engine.info, version="0.1").as_json())
    with pytest.raises(BackendError, match=r"is stale: .* 0\.1 built it"):
        opened(engine)
    sidecar.write_text(engine.info.as_json())
    content = bytearray(engine.plan.read_bytes())
    content[-1] ^= 1
    engine.plan.write_bytes(content)
    with pytest.raises(BundleError, match="its SHA-256 is another"):
        opened(engine)


def test_the_other_choice_of_tf32_is_refused(engine: Built) -> None:
    with pytest.raises(BackendError, match="TF32"):
        TensorRTBackend(engine.plan, engine.flavor, tf32=not engine.info.tf32)


def test_closing_gives_the_memory_back(engine: Built) -> None:
    cuda = CudaRuntime(extra=engine.flavor.value, need="this test")
    free = []
    for _ in range(6):
        with opened(engine) as backend:
            backend.run(images(17), OUTPUTS)
        error, found, _ = cuda.module.cudaMemGetInfo()
        assert error == cuda.module.cudaError_t.cudaSuccess
        free.append(found)
    # The first rounds load modules that stay.
    assert free[-1] >= free[2] - (16 << 20)


def test_short_memory_halves_the_batch_and_changes_no_result(
    engine: Built, cpu: OnnxRuntimeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a real engine: buffers for its largest batch are refused, as a full GPU would."""
    allocate = CudaRuntime.call
    refused = PROFILE[2] * images(1).nbytes

    def call(self: CudaRuntime, function: str, *arguments: Any) -> Any:
        if function == "cudaMalloc" and arguments[0] == refused:
            raise OutOfDeviceMemoryError("refused by the test")
        return allocate(self, function, *arguments)

    monkeypatch.setattr(CudaRuntime, "call", call)
    notices: list[str] = []
    with opened(engine, notice=notices.append) as backend:
        for count in (8, 17, 17, 1):
            batch = images(count, seed=count)
            assert_close(backend.run(batch, OUTPUTS), cpu.run(batch, OUTPUTS), engine.tolerance)
        assert backend.max_batch == PROFILE[2] // 2
    assert notices == ["GPU memory is short: going on with batches of 4"]


def test_more_memory_than_there_is_is_an_error_with_a_type() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="needs the extra rtx")
    cuda = CudaRuntime(extra="rtx", need="this test")
    with pytest.raises(OutOfDeviceMemoryError, match="cudaMalloc failed: out of memory"):
        DeviceMemory(cuda, 1 << 50)
    DeviceMemory(cuda, 1 << 10).free()  # and the next one is not told of it
