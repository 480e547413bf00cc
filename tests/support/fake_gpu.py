"""A GPU, its driver and TensorRT that can be made to fail; for the handling of errors, and for nothing else.

What is queued happens as late as possible: when the host waits for it, or when something that is waited for
must come after it; kernels, if they are in a hurry, as early as possible. So memory that is reused, freed or
read too early shows, and every buffer is counted.
"""

# ruff: noqa: N801, N802, N815 -- names are CUDA's and TensorRT's
from __future__ import annotations

import dataclasses
import enum
import hashlib
import importlib.machinery
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sad_runtime.devices import CudaDevice, CudaDevices
from sad_runtime.tensorrt import EngineInfo, Flavor

PLAN = b"an engine"
VERSION = "99.1"
SHAPE = (3, 2, 2)
CLASSES = 5
ACTIVATIONS_PER_IMAGE = 1000


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


Work = Callable[[], None]
OK = cudaError_t.cudaSuccess


@dataclasses.dataclass
class _Stream:
    queue: list[Work] = dataclasses.field(default_factory=list)
    done: int = 0
    recording: list[Work] | None = None

    def add(self, work: Work) -> None:
        (self.queue if self.recording is None else self.recording).append(work)

    def run_to(self, end: int) -> None:
        while self.done < end:
            self.done += 1
            self.queue[self.done - 1]()


@dataclasses.dataclass
class _Event:
    stream: _Stream | None = None
    end: int = 0

    def reach(self) -> None:
        if self.stream is not None:
            self.stream.run_to(self.end)


class FakeCuda(types.ModuleType):
    """``cuda.bindings.runtime``.

    Attributes:
        free_bytes: What can still be allocated on the GPU.
        live: Everything that was given out and not given back, by handle.
        calls: How many functions were called that can fail.
        failing: After so many of them one fails, once.
        launches: Of CUDA graphs.
        hurry: Whether kernels run as soon as they may.
    """

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaEventDisableTiming = 2
    cudaEventBlockingSync = 1
    cudaStreamNonBlocking = 1

    def __init__(self, free_bytes: int) -> None:
        super().__init__("cuda.bindings.runtime")
        self.free_bytes = free_bytes
        self.live: dict[int, Any] = {}
        self.calls = 0
        self.failing: int | None = None
        self.launches = 0
        self.hurry = False
        self._handles = 0

    def queue_kernels(self, stream: int, *kernels: Work) -> None:
        """Add them to a stream, or to what it records."""
        queue: _Stream = self.live[stream]
        for work in kernels:
            queue.add(work)
        if self.hurry:
            queue.run_to(len(queue.queue))

    def _fails(self) -> bool:
        self.calls += 1
        return self.calls - 1 == self.failing

    def _give(self, thing: Any) -> tuple[Any, ...]:
        if self._fails():
            return cudaError_t.cudaErrorIllegalAddress, None
        self._handles += 1
        self.live[self._handles] = thing
        return OK, self._handles

    def _take(self, handle: int, kind: type) -> tuple[cudaError_t]:
        assert isinstance(self.live.pop(handle), kind)
        return (OK,)

    def buffer(self, address: int, size: int) -> Any:
        """The memory at an address, of which so much is used; it must be there."""
        memory = self.live[address]
        assert isinstance(memory, np.ndarray)
        assert size <= memory.nbytes
        return memory[:size]

    def _allocate(self, size: int) -> tuple[Any, ...]:
        if self._fails():
            return cudaError_t.cudaErrorIllegalAddress, None
        memory = np.full(size, 0xFF, np.uint8)  # as floats: NaN
        self.live[memory.ctypes.data] = memory
        return OK, memory.ctypes.data

    def cudaGetErrorString(self, error: cudaError_t) -> tuple[cudaError_t, bytes]:
        return OK, {cudaError_t.cudaErrorMemoryAllocation: b"out of memory"}.get(error, b"it broke")

    def cudaGetLastError(self) -> tuple[cudaError_t]:
        return (OK,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if size > self.free_bytes:
            return cudaError_t.cudaErrorMemoryAllocation, None
        error, address = self._allocate(size)
        if error == OK:
            self.free_bytes -= size
        return error, address

    def cudaFree(self, devPtr: int) -> tuple[cudaError_t]:
        self.free_bytes += self.live[devPtr].nbytes
        return self._take(devPtr, np.ndarray)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._allocate(size)

    def cudaFreeHost(self, ptr: int) -> tuple[cudaError_t]:
        return self._take(ptr, np.ndarray)

    def cudaMemcpyAsync(
        self, dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: int
    ) -> tuple[cudaError_t]:
        if self._fails():
            return (cudaError_t.cudaErrorIllegalAddress,)

        def work() -> None:
            self.buffer(dst, count)[:] = self.buffer(src, count)

        self.live[stream].add(work)
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return self._give(_Stream())

    def cudaStreamDestroy(self, stream: int) -> tuple[cudaError_t]:
        return self._take(stream, _Stream)

    def cudaStreamSynchronize(self, stream: int) -> tuple[cudaError_t]:
        queue: _Stream = self.live[stream]
        queue.run_to(len(queue.queue))
        return (OK,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return self._give(_Event())

    def cudaEventDestroy(self, event: int) -> tuple[cudaError_t]:
        return self._take(event, _Event)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[cudaError_t]:
        queue: _Stream = self.live[stream]
        self.live[event].stream, self.live[event].end = queue, len(queue.queue)
        return (OK,)

    def cudaEventSynchronize(self, event: int) -> tuple[cudaError_t]:
        self.live[event].reach()
        return (OK,)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[cudaError_t]:
        waited = dataclasses.replace(self.live[event])  # as it is now
        self.live[stream].add(waited.reach)
        return (OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: cudaStreamCaptureMode) -> tuple[cudaError_t]:
        if self._fails():
            return (cudaError_t.cudaErrorIllegalAddress,)
        self.live[stream].recording = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        queue: _Stream = self.live[stream]
        recorded, queue.recording = queue.recording, None
        if self._fails():
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return self._give(recorded)

    def cudaGraphDestroy(self, graph: int) -> tuple[cudaError_t]:
        return self._take(graph, list)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        return self._give(tuple(self.live[graph]))

    def cudaGraphExecDestroy(self, graphExec: int) -> tuple[cudaError_t]:
        return self._take(graphExec, tuple)

    def cudaGraphLaunch(self, graphExec: int, stream: int) -> tuple[cudaError_t]:
        self.launches += 1
        self.queue_kernels(stream, *self.live[graphExec])
        return (OK,)


class _ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1

    def log(self, severity: int, message: str) -> None: ...


class FakeTensorRT(types.ModuleType):
    """``tensorrt`` or ``tensorrt_rtx``, with one engine of two outputs.

    Attributes:
        profile: Smallest, best and largest batch of the engine.
        deserialized: How often an engine was.
        refuses_engine: Whether it is refused.
        refuses_shapes: Whether every batch is.
        fails_in: Executions until one fails; ``None`` for none.
        batches: Of all executions that were queued or recorded.
        kernels: What a kernel cache holds, once something ran.
    """

    __version__ = VERSION
    ILogger = _ILogger
    DataType = enum.Enum("DataType", "FLOAT HALF")
    TensorIOMode = enum.Enum("TensorIOMode", "INPUT OUTPUT")
    ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", "USER_MANAGED")
    CudaGraphStrategy = enum.Enum("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE")

    def __init__(self, name: str, cuda: FakeCuda, profile: tuple[int, int, int]) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.cuda = cuda
        self.profile = profile
        self.deserialized = 0
        self.refuses_engine = False
        self.refuses_shapes = False
        self.fails_in: int | None = None
        self.batches: list[int] = []
        self.kernels = b"kernels"

    def Runtime(self, log: Any) -> Runtime:
        return Runtime(self, log)


@dataclasses.dataclass
class Runtime:
    tensorrt: FakeTensorRT
    logger: Any

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        self.tensorrt.deserialized += 1
        if self.tensorrt.refuses_engine:
            self.logger.log(_ILogger.Severity.ERROR, "built for another\n GPU")
            return None
        return ICudaEngine(self.tensorrt, self.logger)


class ICudaEngine:
    tensors: dict[str, tuple[int, ...]]
    num_io_tensors = 3

    def __init__(self, tensorrt: FakeTensorRT, log: Any) -> None:
        self.tensorrt = tensorrt
        self.log = log
        self.tensors = {"image": SHAPE, "logits": (CLASSES,), "saliency": SHAPE}

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.tensorrt.TensorIOMode
        return modes.INPUT if name == "image" else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.tensorrt.DataType.FLOAT

    def get_tensor_shape(self, name: str) -> list[int]:
        return [-1, *self.tensors[name]]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        return [[n, *self.tensors[name]] for n in self.tensorrt.profile]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig(self.tensorrt)

    def create_execution_context(self, settings: Any) -> IExecutionContext:
        return IExecutionContext(self)


class IRuntimeConfig:
    cuda_graph_strategy: Any = None

    def __init__(self, tensorrt: FakeTensorRT) -> None:
        self.tensorrt = tensorrt

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None: ...

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache(self.tensorrt)

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        return True


class IRuntimeCache:
    def __init__(self, tensorrt: FakeTensorRT) -> None:
        self.tensorrt = tensorrt

    def deserialize(self, blob: bytes) -> bool:
        return blob == self.tensorrt.kernels

    def serialize(self) -> bytes:
        return self.tensorrt.kernels


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self.batch = 0
        self.memory = (0, 0)
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        tensorrt = self.engine.tensorrt
        if tensorrt.refuses_shapes or not tensorrt.profile[0] <= shape[0] <= tensorrt.profile[2]:
            self.engine.log.log(_ILogger.Severity.ERROR, "outside the profile")
            return False
        self.batch = shape[0]
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return self.batch * ACTIVATIONS_PER_IMAGE

    def set_device_memory(self, memory: int, size: int) -> None:
        self.memory = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return name in self.engine.tensors

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Queue: the logits count up from the image's first value, the saliency is twice the image."""
        tensorrt, cuda, batch = self.engine.tensorrt, self.engine.tensorrt.cuda, self.batch
        if tensorrt.fails_in is not None:
            tensorrt.fails_in -= 1
            if tensorrt.fails_in < 0:
                tensorrt.fails_in = None
                self.engine.log.log(_ILogger.Severity.ERROR, "a kernel\n failed")
                return False
        addresses, (memory, size) = dict(self.addresses), self.memory
        assert size >= batch * ACTIVATIONS_PER_IMAGE

        def floats(name: str) -> Any:
            shape = (batch, *self.engine.tensors[name])
            return cuda.buffer(addresses[name], 4 * int(np.prod(shape))).view(np.float32).reshape(shape)

        def work() -> None:
            cuda.buffer(memory, size)
            image = floats("image")
            assert not np.isnan(image).any()  # never written
            floats("logits")[:] = image[:, 0, 0, :1] + np.arange(CLASSES)
            floats("saliency")[:] = 2 * image

        tensorrt.batches.append(batch)
        cuda.queue_kernels(stream_handle, work)
        return True


@dataclasses.dataclass
class FakeGpu:
    """Everything that a test turns."""

    cuda: FakeCuda
    tensorrt: FakeTensorRT


def install(
    monkeypatch: pytest.MonkeyPatch,
    flavor: Flavor,
    *,
    profile: tuple[int, int, int] = (1, 2, 4),
    free_bytes: int = 1 << 30,
) -> FakeGpu:
    """Put a GPU and a flavor's package where they are looked for."""
    cuda = FakeCuda(free_bytes)
    tensorrt = FakeTensorRT(flavor.module, cuda, profile)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, flavor.module, tensorrt)
    found = CudaDevices((CudaDevice("Fake GPU", (8, 9), 1 << 34),), None)
    for module in ("sad_runtime.backends.tensorrt", "sad_runtime.tensorrt.engine"):
        monkeypatch.setattr(f"{module}.cuda_devices", lambda: found)
    return FakeGpu(cuda, tensorrt)


def write_engine(folder: Path, flavor: Flavor, **changes: Any) -> Path:
    """An engine's two files; ``changes`` are to its sidecar."""
    plan = folder / "e.plan"
    plan.write_bytes(PLAN)
    info = EngineInfo(
        flavor=flavor.value,
        version=VERSION,
        precision="fp32",
        targets=("sm_75",),
        hardware_compatibility="none",
        optimization_level=3,
        tf32=False,
        batch=(1, 2, 4),
        input_shape=SHAPE,
        outputs=("logits", "saliency"),
        bytes=len(PLAN),
        seconds=1.0,
        onnx_sha256="0" * 64,
        engine_sha256=hashlib.sha256(PLAN).hexdigest(),
        created_by="tests",
    )
    plan.with_suffix(".json").write_text(dataclasses.replace(info, **changes).as_json())
    return plan
