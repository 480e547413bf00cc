"""A thin layer over ``cuda.bindings.runtime``: its error codes as exceptions, its handles as objects.

Each object gives its handle back with ``free``, which may be called twice and never raises: once a kernel has
failed, every later call fails with its error, which was raised already. The first GPU is used, in whatever
context is current, as all users of the CUDA runtime do.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BackendError, MissingExtraError, OutOfDeviceMemoryError
from .extras import require


class CudaRuntime:
    """The CUDA runtime.

    Args:
        extra: The extra that installs its Python bindings.
        need: What needs it, the subject of the errors' sentences, for example ``the rtx backend``.

    Raises:
        MissingExtraError: The bindings are not installed.
    """

    def __init__(self, *, extra: str, need: str) -> None:
        self.need = need
        try:
            self.module: Any = require("cuda.bindings.runtime", extra=extra, need=need)
        except ImportError:  # another package of the namespace `cuda` is installed
            raise MissingExtraError("cuda.bindings", extra=extra, need=need) from None

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the runtime, which returns (error, result) or (error,).

        Args:
            function: Its name, for example ``cudaMalloc``.
            *arguments: Its arguments.

        Returns:
            The result; ``None`` if it has none.

        Raises:
            OutOfDeviceMemoryError: There is not enough memory, on the GPU or to be pinned.
            BackendError: Anything else is wrong.
        """
        error, *results = getattr(self.module, function)(*arguments)
        codes = self.module.cudaError_t
        if error == codes.cudaSuccess:
            return results[0] if results else None
        self.module.cudaGetLastError()  # the next one who asks must not be told of this error
        text = self.module.cudaGetErrorString(error)[1].decode()
        message = f"{self.need}: {function} failed: {text}"
        if error == codes.cudaErrorMemoryAllocation:
            raise OutOfDeviceMemoryError(message)
        raise BackendError(message, hint="nvidia-smi and sad-deploy doctor show what state the GPU is in")


class _Handle:
    """Something that the runtime gave and wants back."""

    def __init__(self, cuda: CudaRuntime, handle: Any, release: str) -> None:
        self._cuda = cuda
        self._handle = handle
        self._release = release

    def free(self) -> None:
        """Give it back."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            getattr(self._cuda.module, self._release)(handle)


class DeviceMemory(_Handle):
    """Memory on the GPU, aligned for any use.

    Attributes:
        address: Where.
        size: Bytes.

    Raises:
        OutOfDeviceMemoryError: There is not so much.
    """

    def __init__(self, cuda: CudaRuntime, size: int) -> None:
        super().__init__(cuda, cuda.call("cudaMalloc", size), "cudaFree")
        self.address = int(self._handle)
        self.size = size


class PinnedMemory(_Handle):
    """An array in the host's memory that the GPU copies from and to by itself, while others work.

    Attributes:
        address: Where.
        array: The memory as an array; not to be used after ``free``.

    Args:
        cuda: The runtime.
        shape: Of the array.
        dtype: Of the array.

    Raises:
        OutOfDeviceMemoryError: So much cannot be pinned.
    """

    def __init__(self, cuda: CudaRuntime, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        super().__init__(cuda, cuda.call("cudaMallocHost", size), "cudaFreeHost")
        self.address = int(self._handle)
        memory = memoryview((ctypes.c_byte * size).from_address(self.address))
        self.array: npt.NDArray[Any] = np.frombuffer(memory, dtype).reshape(shape)


class Event(_Handle):
    """A point in a stream that other streams and the host can wait for."""

    def __init__(self, cuda: CudaRuntime) -> None:
        # Waiting must sleep, not spin: the decoding threads need the core.
        flags = cuda.module.cudaEventDisableTiming | cuda.module.cudaEventBlockingSync
        super().__init__(cuda, cuda.call("cudaEventCreateWithFlags", flags), "cudaEventDestroy")

    def wait(self) -> None:
        """Let the host wait until the stream has come this far."""
        self._cuda.call("cudaEventSynchronize", self._handle)


class Stream(_Handle):
    """A queue of work for the GPU, independent of the default stream.

    Attributes:
        number: The handle as a number, as TensorRT takes it.
    """

    def __init__(self, cuda: CudaRuntime) -> None:
        flags = cuda.module.cudaStreamNonBlocking
        super().__init__(cuda, cuda.call("cudaStreamCreateWithFlags", flags), "cudaStreamDestroy")
        self.number = int(self._handle)

    def to_device(self, target: DeviceMemory, source: PinnedMemory, size: int) -> None:
        """Queue a copy of the first ``size`` bytes to the GPU."""
        kind = self._cuda.module.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._cuda.call("cudaMemcpyAsync", target.address, source.address, size, kind, self._handle)

    def to_host(self, target: PinnedMemory, source: DeviceMemory, size: int) -> None:
        """Queue a copy of the first ``size`` bytes from the GPU."""
        kind = self._cuda.module.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._cuda.call("cudaMemcpyAsync", target.address, source.address, size, kind, self._handle)

    def record(self, event: Event) -> None:
        """Set an event behind all that is queued."""
        self._cuda.call("cudaEventRecord", event._handle, self._handle)

    def wait_for(self, event: Event) -> None:
        """Let what is queued from now on wait for an event of another stream."""
        self._cuda.call("cudaStreamWaitEvent", self._handle, event._handle, 0)

    def wait(self) -> None:
        """Let the host wait until the queue is empty."""
        self._cuda.call("cudaStreamSynchronize", self._handle)

    def settle(self) -> None:
        """Like `wait`, on the way out of an error: never raises, and does nothing after `free`."""
        if self._handle is not None:
            self._cuda.module.cudaStreamSynchronize(self._handle)

    def capture(self, queue_work: Callable[[], None]) -> Graph:
        """Record work instead of doing it.

        Args:
            queue_work: Queues the work in this stream.

        Raises:
            BackendError: The work cannot be recorded; the stream goes on as before. Likewise whatever
                ``queue_work`` raises.
        """
        # Only this thread's calls are forbidden meanwhile; others may allocate.
        mode = self._cuda.module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda.call("cudaStreamBeginCapture", self._handle, mode)
        try:
            queue_work()
        except BaseException:
            # A stream leaves the recording only through its end.
            error, *graphs = self._cuda.module.cudaStreamEndCapture(self._handle)
            if error == self._cuda.module.cudaError_t.cudaSuccess:
                self._cuda.module.cudaGraphDestroy(graphs[0])
            self._cuda.module.cudaGetLastError()
            raise
        recorded = self._cuda.call("cudaStreamEndCapture", self._handle)
        try:
            return Graph(self._cuda, self._cuda.call("cudaGraphInstantiate", recorded, 0))
        finally:
            self._cuda.module.cudaGraphDestroy(recorded)


class Graph(_Handle):
    """Recorded work; see :meth:`Stream.capture`."""

    def __init__(self, cuda: CudaRuntime, executable: Any) -> None:
        super().__init__(cuda, executable, "cudaGraphExecDestroy")

    def launch(self, stream: Stream) -> None:
        """Queue the work in a stream."""
        self._cuda.call("cudaGraphLaunch", self._handle, stream._handle)
