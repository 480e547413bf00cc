from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sad_runtime.backends.tensorrt import TensorRTBackend
from sad_runtime.cuda import CudaRuntime, DeviceMemory
from sad_runtime.devices import cuda_devices
from sad_runtime.errors import BackendError, BundleError, MissingExtraError
from sad_runtime.tensorrt import Flavor, error_log, load_tensorrt
from tests.support import fake_gpu
from tests.support.fake_gpu import CLASSES, SHAPE, install, write_engine
from tests.support.trt_names import RTX_RUNTIME_NAMES, RUNTIME_NAMES


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
    for names in (RUNTIME_NAMES, RTX_RUNTIME_NAMES):
        for of_class, attributes in names.items():
            owner = getattr(tensorrt_rtx, of_class) if of_class else tensorrt_rtx
            assert [name for name in attributes if not hasattr(owner, name)] == []


def test_the_stand_in_for_tensorrt_has_only_names_that_are_checked(tensorrt_rtx: ModuleType) -> None:
    """So whatever is used in the tests of errors is in the lists."""
    listed: dict[str, set[str]] = {}
    for names in (RUNTIME_NAMES, RTX_RUNTIME_NAMES):
        for path, attributes in names.items():
            listed.setdefault(path, set()).update(attributes)
    fakes = (
        fake_gpu.ICudaEngine,
        fake_gpu.IExecutionContext,
        fake_gpu.IRuntimeCache,
        fake_gpu.IRuntimeConfig,
    )
    for fake in fakes:
        public = {name for name in vars(fake) if not name.startswith("_")}
        assert public <= listed[fake.__name__]


def test_every_function_used_of_cuda_exists_and_takes_what_it_is_given(cuda_runtime: ModuleType) -> None:
    """The stand-in is called as the runtime calls; its parameters are those of the real functions."""
    functions = {name for name in vars(fake_gpu.FakeCuda) if name.startswith("cuda")}
    for name in functions - {"cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode"}:
        fake, real = getattr(fake_gpu.FakeCuda, name), getattr(cuda_runtime, name)
        if callable(fake):
            assert list(inspect.signature(fake).parameters)[1:] == list(inspect.signature(real).parameters), (
                name
            )
        else:
            assert fake == real
    for kind in (fake_gpu.cudaError_t, fake_gpu.cudaMemcpyKind, fake_gpu.cudaStreamCaptureMode):
        for member in kind:
            assert getattr(getattr(cuda_runtime, kind.__name__), member.name) == member.value


@pytest.mark.skipif(cuda_devices().count > 0, reason="what is returned where there is no GPU")
def test_real_cuda_returns_its_error_first_and_it_becomes_one_line(cuda_runtime: ModuleType) -> None:
    error, *results = cuda_runtime.cudaMalloc(1)
    assert isinstance(error, cuda_runtime.cudaError_t)
    assert len(results) == 1
    cuda = CudaRuntime(extra="rtx", need="the rtx backend")
    with pytest.raises(BackendError, match="the rtx backend: cudaMalloc failed: ") as caught:
        DeviceMemory(cuda, 1)
    assert "\n" not in caught.value.message


def test_log_keeps_why_an_engine_was_refused(tensorrt_rtx: ModuleType) -> None:
    log = error_log(tensorrt_rtx)
    assert log.reason() == "it gave no reason"
    runtime = tensorrt_rtx.Runtime(log)
    assert runtime.deserialize_cuda_engine(b"no engine" * 50) is None
    assert log.reason() != "it gave no reason"
    assert "\n" not in log.reason()


# From here on a stand-in for the GPU fails in ways that a real one cannot be made to; tests/gpu has the rest.

FLAVORS = pytest.mark.parametrize("flavor", list(Flavor))
BYTES_PER_IMAGE = 4 * (2 * int(np.prod(SHAPE)) + CLASSES)


def numbered(count: int) -> npt.NDArray[np.float32]:
    """Images that all differ."""
    return np.arange(count * int(np.prod(SHAPE)), dtype=np.float32).reshape(count, *SHAPE)


def assert_right(run: dict[str, npt.NDArray[np.float32]], images: npt.NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(run["logits"], images[:, 0, 0, :1] + np.arange(CLASSES))
    np.testing.assert_array_equal(run["saliency"], 2 * images)


BOTH = ("logits", "saliency")


@FLAVORS
@pytest.mark.parametrize(
    ("changes", "kind", "message", "hint"),
    [
        (
            {"version": "98.0"},
            BackendError,
            "is stale: .* 98.0 built it, 99.1 is installed",
            "build it again",
        ),
        ({"engine_sha256": "0" * 64}, BundleError, "its SHA-256 is another", "build it again"),
        ({"tf32": True}, BackendError, "built with TF32, .* was not asked for", "run it with --tf32"),
    ],
)
def test_engine_that_does_not_fit_its_sidecar_is_never_shown_to_tensorrt(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    flavor: Flavor,
    changes: dict[str, Any],
    kind: type[Exception],
    message: str,
    hint: str,
) -> None:
    gpu = install(monkeypatch, flavor)
    plan = write_engine(tmp_path, flavor, **changes)
    with pytest.raises(kind, match=message) as caught:
        TensorRTBackend(plan, flavor)
    assert hint in str(caught.value.hint)  # type: ignore[attr-defined]
    assert gpu.tensorrt.deserialized == 0
    assert gpu.cuda.live == {}


def test_tf32_that_an_engine_was_not_built_with_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, Flavor.RTX)
    with pytest.raises(BackendError, match="built without TF32") as caught:
        TensorRTBackend(write_engine(tmp_path, Flavor.RTX), Flavor.RTX, tf32=True)
    assert "sad-deploy export --trt --flavor rtx --tf32" in str(caught.value.hint)
    TensorRTBackend(write_engine(tmp_path, Flavor.RTX, tf32=True), Flavor.RTX, tf32=True).close()


@FLAVORS
def test_engine_of_the_other_flavor_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flavor: Flavor
) -> None:
    install(monkeypatch, flavor)
    (other,) = set(Flavor) - {flavor}
    with pytest.raises(BundleError, match=f"is an engine of {other}, not of {flavor}") as caught:
        TensorRTBackend(write_engine(tmp_path, other), flavor)
    assert caught.value.hint == f"run it with --backend {other}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"e\.json cannot be read: No such file"),
        ("{", "is not valid JSON"),
        ("[]", "has schema None"),
        ('{"schema": 2}', "e.json: "),
    ],
)
def test_bad_sidecar_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, message: str
) -> None:
    install(monkeypatch, Flavor.RTX)
    sidecar = write_engine(tmp_path, Flavor.RTX).with_suffix(".json")
    sidecar.unlink() if text is None else sidecar.write_text(text)
    with pytest.raises(BundleError, match=message):
        TensorRTBackend(tmp_path / "e.plan", Flavor.RTX)


@FLAVORS
def test_engine_that_tensorrt_refuses_is_one_line_with_its_reason_and_both_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flavor: Flavor
) -> None:
    gpu = install(monkeypatch, flavor)
    gpu.tensorrt.refuses_engine = True
    with pytest.raises(BackendError) as caught:
        TensorRTBackend(write_engine(tmp_path, flavor), flavor)
    assert caught.value.message.endswith(
        "built for sm_75, on Fake GPU (compute capability 8.9): built for another GPU"
    )
    assert gpu.cuda.live == {}


@FLAVORS
def test_refused_batch_is_one_line_and_the_backend_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flavor: Flavor
) -> None:
    gpu = install(monkeypatch, flavor)
    with TensorRTBackend(write_engine(tmp_path, flavor), flavor) as backend:
        gpu.tensorrt.refuses_shapes = True
        with pytest.raises(
            BackendError, match=r"refused a batch of shape \(4, 3, 2, 2\): outside the profile"
        ):
            backend.run(numbered(9), BOTH)
        gpu.tensorrt.refuses_shapes = False
        assert_right(backend.run(numbered(9), BOTH), numbered(9))
    assert gpu.cuda.live == {}


@FLAVORS
@pytest.mark.parametrize("hurry", [False, True])
@pytest.mark.parametrize("before", range(3))
def test_failed_execution_is_one_line_and_the_backend_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flavor: Flavor, before: int, hurry: bool
) -> None:
    gpu = install(monkeypatch, flavor, profile=(2, 2, 4))
    gpu.cuda.hurry = hurry
    with TensorRTBackend(write_engine(tmp_path, flavor), flavor) as backend:
        gpu.tensorrt.fails_in = 0
        with pytest.raises(BackendError, match="failed on a batch of 3: a kernel failed"):
            backend.compute(3)
        gpu.tensorrt.fails_in = before
        with pytest.raises(BackendError, match=r"failed on a batch of \d: a kernel failed"):
            backend.run(numbered(9), BOTH)
        for count in (1, 1, 1, 9, 9, 9, 1):  # recorded, then with more memory, then recorded anew
            assert_right(backend.run(numbered(count), BOTH), numbered(count))
    assert gpu.cuda.live == {}


@FLAVORS
@pytest.mark.parametrize("hurry", [False, True])
@pytest.mark.parametrize("count", [1, 3, 4, 9, 17])
@pytest.mark.parametrize("room", [4, 2, 1])
def test_short_memory_halves_the_batch_says_so_once_and_changes_no_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flavor: Flavor, count: int, room: int, hurry: bool
) -> None:
    # Two slots and the activations of so many images, but not of twice as many.
    needed = room * (2 * BYTES_PER_IMAGE + fake_gpu.ACTIVATIONS_PER_IMAGE)
    gpu = install(monkeypatch, flavor, free_bytes=needed)
    gpu.cuda.hurry = hurry
    notices: list[str] = []
    images = numbered(count)
    with TensorRTBackend(write_engine(tmp_path, flavor), flavor, notice=notices.append) as backend:
        for _ in range(3):
            assert_right(backend.run(images, BOTH), images)
        size = backend.max_batch
        assert notices == ([] if size == 4 else [f"GPU memory is short: going on with batches of {size}"])
        if count >= 9:  # then both slots are in use
            assert size == room
    assert gpu.cuda.live == {}
    assert gpu.cuda.free_bytes == needed


@FLAVORS
def test_memory_too_short_for_one_image_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flavor: Flavor
) -> None:
    gpu = install(monkeypatch, flavor, free_bytes=BYTES_PER_IMAGE - 1)
    notices: list[str] = []
    with TensorRTBackend(write_engine(tmp_path, flavor), flavor, notice=notices.append) as backend:
        with pytest.raises(
            BackendError, match=r"does not even hold a batch of 1: .* out of memory"
        ) as caught:
            backend.run(numbered(9), BOTH)
        assert "--backend cpu" in str(caught.value.hint)
    assert notices == []
    assert gpu.cuda.live == {}


def test_batches_are_not_halved_below_what_the_engine_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = install(monkeypatch, Flavor.RTX, profile=(2, 2, 8), free_bytes=BYTES_PER_IMAGE)
    with (
        TensorRTBackend(write_engine(tmp_path, Flavor.RTX), Flavor.RTX) as backend,
        pytest.raises(BackendError, match="does not even hold a batch of 2"),
    ):
        backend.run(numbered(1), BOTH)
    assert gpu.cuda.live == {}


@FLAVORS
def test_every_buffer_is_given_back_wherever_the_gpu_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flavor: Flavor
) -> None:
    plan = write_engine(tmp_path, flavor)
    for failing in range(200):
        gpu = install(monkeypatch, flavor)
        gpu.cuda.failing = failing
        try:
            backend = TensorRTBackend(plan, flavor)
        except BackendError as error:
            assert "it broke" in error.message
            assert gpu.cuda.live == {}
            continue
        failed = 0
        with backend:
            for images in (numbered(1), numbered(9), numbered(2), numbered(9)):
                try:
                    assert_right(backend.run(images, BOTH), images)
                except BackendError as error:
                    assert "it broke" in error.message
                    failed += 1
        backend.close()  # a second time
        assert gpu.cuda.live == {}
        assert failed <= 1
        if gpu.cuda.calls <= failing:
            break
    else:
        raise AssertionError("it never ran to the end")
    assert failing > 30


def test_engine_that_cannot_be_recorded_runs_without_a_cuda_graph(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = install(monkeypatch, Flavor.TENSORRT)
    images = numbered(4)
    with TensorRTBackend(write_engine(tmp_path, Flavor.TENSORRT), Flavor.TENSORRT) as backend:
        backend.run(images, BOTH)
        gpu.tensorrt.fails_in = 0  # that of the recording
        for _ in range(2):
            assert_right(backend.run(images, BOTH), images)
        assert gpu.cuda.launches == 0
    assert gpu.cuda.live == {}


@pytest.mark.parametrize("content", [b"", b"damaged"])
def test_damaged_kernel_cache_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    gpu = install(monkeypatch, Flavor.RTX)
    plan = write_engine(tmp_path, Flavor.RTX)
    (tmp_path / "e.cache").write_bytes(content)
    with TensorRTBackend(plan, Flavor.RTX) as backend:
        assert_right(backend.run(numbered(2), BOTH), numbered(2))
    assert (tmp_path / "e.cache").read_bytes() == gpu.tensorrt.kernels
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.cache", "e.json", "e.plan"]


def test_kernel_cache_is_not_needed_where_it_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, Flavor.RTX)
    plan = write_engine(tmp_path, Flavor.RTX)
    (tmp_path / "e.cache").mkdir()  # root may write into any folder, but not replace this one by a file
    with TensorRTBackend(plan, Flavor.RTX) as backend:
        assert_right(backend.run(numbered(2), BOTH), numbered(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.cache", "e.json", "e.plan"]
