"""The ``rtx`` and ``tensorrt`` backends: one engine runner over whichever module the flavor names.

Both modules have the same Python interface. Device memory goes through ``cuda.bindings.runtime``, so that a
serving host needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..devices import cuda_devices
from ..errors import BackendError, BundleError, MissingExtraError
from ..extras import require
from ..tensorrt import Flavor, error_log, load_tensorrt
from .protocol import INPUT


def _load_cuda_runtime(flavor: Flavor, *, need: str) -> ModuleType:
    try:
        return require("cuda.bindings.runtime", extra=flavor.value, need=need)
    except ImportError:  # another package of the namespace `cuda` is installed
        raise MissingExtraError("cuda.bindings", extra=flavor.value, need=need) from None


class TensorRTBackend:
    """A TensorRT engine on the first GPU; see :class:`~sad_runtime.backends.protocol.Backend`.

    A batch beyond the profile's largest is split; one below its smallest is filled up with its last image.

    Args:
        plan: The engine's file.
        flavor: Which TensorRT built it.

    Raises:
        MissingExtraError: The flavor's package, or CUDA's Python bindings, are not installed.
        BackendError: No GPU; libraries that do not load; an engine of another version or for another GPU.
        BundleError: The engine's input is not a batch of images of one size.
    """

    def __init__(self, plan: Path, flavor: Flavor) -> None:
        self.name = str(flavor)
        need = f"the {flavor} backend"
        if problem := cuda_devices().problem:
            raise BackendError(f"{need} needs an NVIDIA GPU: {problem}", hint="use --backend cpu")
        self._tensorrt: Any = load_tensorrt(flavor, need=need)
        self._cuda: Any = _load_cuda_runtime(flavor, need=need)
        log = error_log(self._tensorrt)
        self._runtime = self._tensorrt.Runtime(log)
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise BackendError(
                f"{self._tensorrt.__name__} {self._tensorrt.__version__} cannot load {plan}: {log.reason()}",
                hint=f"an engine runs on the version and kind of GPU it was built for; build it again with: "
                f"sad-deploy export --trt --flavor {flavor}",
            )
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        output = self._tensorrt.TensorIOMode.OUTPUT
        self.output_names = tuple(name for name in names if self._engine.get_tensor_mode(name) == output)
        if [name for name in names if name not in self.output_names] != [INPUT]:
            raise BundleError(f"{plan} must have the one input {INPUT!r}")
        smallest, _, largest = (tuple(shape) for shape in self._engine.get_tensor_profile_shape(INPUT, 0))
        self.input_shape: tuple[int, int, int] = (largest[1], largest[2], largest[3])
        self._min_batch: int = smallest[0]
        self.max_batch: int | None = largest[0]
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BackendError(f"not enough GPU memory to run {plan}: {log.reason()}")
        self._buffers: dict[str, tuple[int, int]] = {}  # name → address, bytes
        self._stream = self._call("cudaStreamCreate")

    def run(
        self, images: npt.NDArray[np.float32], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run a batch; see the protocol."""
        assert self.max_batch is not None
        starts = range(0, len(images), self.max_batch)
        parts = [self._run_chunk(images[start : start + self.max_batch], outputs) for start in starts]
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    def _run_chunk(
        self, images: npt.NDArray[np.float32], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        count = len(images)
        if count < self._min_batch:
            images = np.concatenate([images, np.repeat(images[-1:], self._min_batch - count, axis=0)])
        images = np.ascontiguousarray(images)
        kind = self._cuda.cudaMemcpyKind
        if not self._context.set_input_shape(INPUT, images.shape):
            raise BackendError(f"the {self.name} engine refused a batch of shape {images.shape}")
        address = self._buffer(INPUT, images.nbytes)
        self._copy(address, images.ctypes.data, images.nbytes, kind.cudaMemcpyHostToDevice)
        results = {}
        for name in self.output_names:
            shape = tuple(self._context.get_tensor_shape(name))
            dtype = self._tensorrt.nptype(self._engine.get_tensor_dtype(name))
            results[name] = np.empty(shape, dtype)
            self._buffer(name, results[name].nbytes)
        if not self._context.execute_async_v3(self._stream):
            raise BackendError(
                f"the {self.name} engine failed on a batch of {len(images)}",
                hint="if GPU memory ran out, a smaller --batch-size helps",
            )
        for name in outputs:
            array = results[name]
            self._copy(array.ctypes.data, self._buffers[name][0], array.nbytes, kind.cudaMemcpyDeviceToHost)
        self._call("cudaStreamSynchronize", self._stream)
        return {name: results[name][:count].astype(np.float32, copy=False) for name in outputs}

    def _buffer(self, name: str, size: int) -> int:
        """Set a device buffer, kept from batch to batch, as a tensor's; grown if too small. Its address."""
        address, capacity = self._buffers.get(name, (0, 0))
        if capacity < size:
            if address:
                del self._buffers[name]
                self._call("cudaFree", address)
            address = int(self._call("cudaMalloc", size))
            self._buffers[name] = (address, size)
        self._context.set_tensor_address(name, address)
        return address

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        self._call("cudaMemcpyAsync", target, source, size, kind, self._stream)

    def _call(self, function: str, *arguments: Any) -> Any:
        """Call the CUDA runtime; its functions return (error, result)."""
        error, *results = getattr(self._cuda, function)(*arguments)
        if error != self._cuda.cudaError_t.cudaSuccess:
            text = self._cuda.cudaGetErrorString(error)[1].decode()
            raise BackendError(
                f"the {self.name} backend: {function} failed: {text}",
                hint="if GPU memory ran out, a smaller --batch-size helps",
            )
        return results[0] if results else None

    def close(self) -> None:
        """Give the GPU's memory back."""
        if self._context is None:
            return
        for address, _ in self._buffers.values():
            self._call("cudaFree", address)
        self._buffers = {}
        self._call("cudaStreamDestroy", self._stream)
        # In this order: a context needs its engine, an engine its runtime.
        self._context = None
        self._engine = None
        self._runtime = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
