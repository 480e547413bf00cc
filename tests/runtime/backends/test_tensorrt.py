from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sad_runtime.backends.tensorrt import TensorRTBackend
from sad_runtime.devices import cuda_devices
from sad_runtime.errors import BackendError, MissingExtraError
from sad_runtime.tensorrt import Flavor, error_log, load_tensorrt

from ..tiny_bundle import LinearModel, two_pass_graph


@pytest.fixture(scope="module")
def tensorrt_rtx() -> ModuleType:
    return pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")


@pytest.fixture(scope="module")
def cuda_runtime() -> ModuleType:
    return pytest.importorskip("cuda.bindings.runtime", reason="needs the extra rtx")


@pytest.mark.skipif(cuda_devices().count > 0, reason="what is said where there is no GPU")
@pytest.mark.parametrize("flavor", list(Flavor))
def test_no_gpu_is_said_first(tmp_path: Path, flavor: Flavor) -> None:
    with pytest.raises(BackendError, match=f"the {flavor} backend needs an NVIDIA GPU: "):
        TensorRTBackend(tmp_path / "absent.plan", flavor)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="enterprise TensorRT is installed"
)
def test_missing_package_names_the_extra() -> None:
    with pytest.raises(MissingExtraError) as caught:
        load_tensorrt(Flavor.TENSORRT, need="the tensorrt backend")
    assert caught.value.message == "the tensorrt backend needs tensorrt, which is not installed"
    assert caught.value.hint == 'pip install "sad-deploy[tensorrt]"'


def test_package_without_its_libraries_is_another_message(tmp_path: Path) -> None:
    """As enterprise TensorRT's bindings are without the wheel of libraries: the import itself fails."""
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text(
        "import ctypes\nctypes.CDLL('libnvinfer_that_is_not_there.so.11')\n"
    )
    code = (
        "from sad_runtime.tensorrt import Flavor, load_tensorrt\n"
        "from sad_runtime.errors import BackendError\n"
        "try:\n    load_tensorrt(Flavor.TENSORRT, need='x')\n"
        "except BackendError as error:\n    print(error.message, '|', error.hint)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith(
        "tensorrt is installed, but its libraries do not load: libnvinfer_that_is_not"
    )
    assert "--force-reinstall" in run.stdout


def test_every_name_used_of_tensorrt_exists(tensorrt_rtx: ModuleType) -> None:
    used = {
        tensorrt_rtx: ["Runtime", "ILogger", "nptype", "__version__", "TensorIOMode"],
        tensorrt_rtx.TensorIOMode: ["OUTPUT"],
        tensorrt_rtx.ILogger.Severity: ["ERROR", "INTERNAL_ERROR"],
        tensorrt_rtx.Runtime: ["deserialize_cuda_engine"],
        tensorrt_rtx.ICudaEngine: [
            "num_io_tensors",
            "get_tensor_name",
            "get_tensor_mode",
            "get_tensor_dtype",
            "get_tensor_profile_shape",
            "create_execution_context",
        ],
        tensorrt_rtx.IExecutionContext: [
            "set_input_shape",
            "get_tensor_shape",
            "set_tensor_address",
            "execute_async_v3",
        ],
    }
    missing = [(owner, name) for owner, names in used.items() for name in names if not hasattr(owner, name)]
    assert missing == []
    assert tensorrt_rtx.nptype(tensorrt_rtx.float32) is np.float32


def test_every_name_used_of_cuda_exists_and_returns_its_error_first(cuda_runtime: ModuleType) -> None:
    names = ["cudaMalloc", "cudaFree", "cudaMemcpyAsync", "cudaStreamCreate", "cudaStreamDestroy"]
    names += ["cudaStreamSynchronize", "cudaGetErrorString"]
    assert [name for name in names if not hasattr(cuda_runtime, name)] == []
    assert hasattr(cuda_runtime.cudaMemcpyKind, "cudaMemcpyHostToDevice")
    assert hasattr(cuda_runtime.cudaMemcpyKind, "cudaMemcpyDeviceToHost")
    error, *results = cuda_runtime.cudaStreamCreate()
    assert isinstance(error, cuda_runtime.cudaError_t)
    assert len(results) == 1
    assert cuda_runtime.cudaGetErrorString(error)[1].decode()


def test_log_keeps_why_an_engine_was_refused(tensorrt_rtx: ModuleType) -> None:
    log = error_log(tensorrt_rtx)
    assert log.reason() == "it gave no reason"
    runtime = tensorrt_rtx.Runtime(log)
    assert runtime.deserialize_cuda_engine(b"no engine" * 50) is None
    assert log.reason() != "it gave no reason"
    assert "\n" not in log.reason()


def build_engine(tensorrt: ModuleType, model: LinearModel, batches: tuple[int, int, int]) -> bytes:
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    assert parser.parse(two_pass_graph(model).SerializeToString())
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("image", *((n, *model.weight.shape[1:]) for n in batches))
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


@pytest.mark.gpu
@pytest.mark.skipif(cuda_devices().count == 0, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_engine_equals_the_float64_reference_in_every_batch_size(
    tensorrt_rtx: ModuleType, cuda_runtime: ModuleType, tmp_path: Path, model: LinearModel, count: int
) -> None:
    (tmp_path / "e.plan").write_bytes(build_engine(tensorrt_rtx, model, (2, 3, 4)))
    images = np.random.default_rng(1).random((count, 3, 8, 8), dtype=np.float32)
    with TensorRTBackend(tmp_path / "e.plan", Flavor.RTX) as backend:
        assert backend.max_batch == 4
        assert backend.input_shape == (3, 8, 8)
        run = backend.run(images, ("logits", "saliency"))
    logits, saliency, _ = model.two_pass(images)
    np.testing.assert_allclose(run["logits"], logits, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(run["saliency"], saliency, rtol=1e-3, atol=1e-3)
