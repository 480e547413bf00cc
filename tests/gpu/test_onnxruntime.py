"""onnxruntime on CUDA against onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sad_runtime.backends.onnxruntime import OnnxRuntimeBackend, Provider
from sad_runtime.errors import BackendError

from .conftest import OUTPUTS, assert_close, images

pytestmark = pytest.mark.gpu

SIZES = [1, 5, 8, 8, 8, 3, 5, 17, 2, 8, 1]


@pytest.mark.parametrize("outputs", [OUTPUTS, ("logits",), ("saliency", "logits")])
def test_cuda_equals_the_cpu_and_has_no_tf32(
    graph_path: Path, cpu: OnnxRuntimeBackend, outputs: tuple[str, ...]
) -> None:
    with OnnxRuntimeBackend(graph_path, Provider.CUDA) as backend:
        assert backend.name == "cuda"
        assert backend.max_batch is None
        for seed, count in enumerate(SIZES):
            batch = images(count, seed=seed)
            run = backend.run(batch, outputs)
            assert tuple(run) == outputs
            assert_close(run, cpu.run(batch, outputs), 1e-4)


def test_tf32_only_where_it_is_asked_for(graph_path: Path, cpu: OnnxRuntimeBackend) -> None:
    batch = images(8)
    with OnnxRuntimeBackend(graph_path, Provider.CUDA, tf32=True) as backend:
        assert_close(backend.run(batch, OUTPUTS), cpu.run(batch, OUTPUTS), 1e-2)


def test_cuda_graphs_change_no_result(graph_path: Path, cpu: OnnxRuntimeBackend) -> None:
    try:
        backend = OnnxRuntimeBackend(graph_path, Provider.CUDA, cuda_graphs=True)
    except BackendError as error:
        pytest.skip(f"onnxruntime does not record this graph: {error.message}")
    with backend:
        for seed, count in enumerate(SIZES * 2):
            for outputs in (OUTPUTS, ("logits",)):
                batch = images(count, seed=seed)
                assert_close(backend.run(batch, outputs), cpu.run(batch, outputs), 1e-4)


def test_results_of_earlier_batches_are_not_written_to(graph_path: Path) -> None:
    with OnnxRuntimeBackend(graph_path, Provider.CUDA) as backend:
        first = backend.run(images(8), OUTPUTS)
        kept = {name: values.copy() for name, values in first.items()}
        backend.run(images(8, seed=1), OUTPUTS)
    for name, values in kept.items():
        np.testing.assert_array_equal(first[name], values)
