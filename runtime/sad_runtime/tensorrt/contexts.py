"""Execution contexts, one for each batch size and slot, and the CUDA graphs recorded from them.

A CUDA graph holds the shapes and addresses that it was recorded with, and its context must not be changed
afterwards: so every combination has a context of its own. They run one after the other in one stream and
share the memory for activations, which is allocated here and not by TensorRT: all that grows with the batch
comes from ``cudaMalloc``, whose errors have a type.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cuda import CudaRuntime, DeviceMemory, Graph, Stream
from ..errors import BackendError
from .engine import LoadedEngine
from .flavors import Flavor
from .kernel_cache import KernelCache, cache_path

_KEPT = 8
"""Contexts; a run of any length needs three: two slots of the usual size and one of the rest."""


class Prepared:
    """A context with its shape and addresses set.

    Attributes:
        batch: Images.
        context: TensorRT's.
        graph: What was recorded from it.
        has_run: Whether it ran once, which must come before a recording: TensorRT defers work until then.
        can_record: Whether a recording is worth a try.
    """

    def __init__(self, batch: int, context: Any, *, can_record: bool) -> None:
        self.batch = batch
        self.context = context
        self.graph: Graph | None = None
        self.has_run = False
        self.can_record = can_record

    def forget_graph(self) -> None:
        """Drop what was recorded."""
        if self.graph is not None:
            self.graph.free()
            self.graph = None


class Contexts:
    """All contexts of an engine.

    Args:
        cuda: The CUDA runtime.
        tensorrt: The flavor's module.
        log: Of :func:`~sad_runtime.tensorrt.error_log`.
        flavor: Which TensorRT.
        loaded: The engine.
        plan: Its file, beside which compiled kernels are kept.
        cuda_graphs: Whether to launch all kernels of a batch at once.
    """

    def __init__(
        self,
        cuda: CudaRuntime,
        tensorrt: Any,
        log: Any,
        flavor: Flavor,
        loaded: LoadedEngine,
        plan: Path,
        *,
        cuda_graphs: bool,
    ) -> None:
        self._cuda = cuda
        self._log = log
        self._loaded = loaded
        self._prepared: collections.OrderedDict[tuple[int, int], Prepared] = collections.OrderedDict()
        self._memory: DeviceMemory | None = None
        self._kernels: KernelCache | None = None
        self._cache: Any = None
        user_managed = tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._records = cuda_graphs and not flavor.differences.cuda_graph_strategy
        # What contexts are created with: a strategy, or a configuration that holds it.
        self._settings: Any = user_managed
        if flavor.differences.runtime_cache:
            self._settings = loaded.engine.create_runtime_config()
            self._settings.set_execution_context_allocation_strategy(user_managed)
            # Dropping TensorRT's cache object while contexts use it ends the process, so it is kept here.
            self._cache = self._settings.create_runtime_cache()
            self._kernels = KernelCache(self._cache, cache_path(plan))
            self._settings.set_runtime_cache(self._cache)
            if cuda_graphs and flavor.differences.cuda_graph_strategy:
                self._settings.cuda_graph_strategy = tensorrt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE

    def prepare(self, batch: int, slot: int, addresses: Mapping[str, int]) -> Prepared:
        """The context for a batch size and slot, made if need be. Nothing may be running.

        Args:
            batch: Images.
            slot: Which set of buffers.
            addresses: Where its tensors lie, by name; always the same for a slot.

        Raises:
            OutOfDeviceMemoryError: The activations of such a batch do not fit.
            BackendError: TensorRT refuses the batch.
        """
        key = (batch, slot)
        if key in self._prepared:
            self._prepared.move_to_end(key)
            return self._prepared[key]
        while len(self._prepared) >= _KEPT:
            self._prepared.popitem(last=False)[1].forget_graph()
        self._log.errors.clear()
        context = self._loaded.engine.create_execution_context(self._settings)
        if context is None:
            raise BackendError(
                f"{self._cuda.need} cannot make an execution context: {self._log.reason()}",
                hint="if GPU memory is short, end what else runs on the GPU",
            )
        shape = (batch, *self._loaded.input_shape)
        if not context.set_input_shape(self._loaded.input, shape):
            raise BackendError(
                f"{self._cuda.need}: the engine refused a batch of shape {shape}: {self._log.reason()}"
            )
        size = context.update_device_memory_size_for_shapes()
        self._reserve(size)
        if self._memory is not None:
            context.set_device_memory(self._memory.address, self._memory.size)
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise BackendError(f"{self._cuda.need}: the engine has no tensor {name!r}")
        self._prepared[key] = Prepared(batch, context, can_record=self._records)
        return self._prepared[key]

    def _reserve(self, size: int) -> None:
        """Grow the buffer of activations, which all contexts share, and bind them to it again."""
        if size <= (self._memory.size if self._memory else 0):
            return
        if self._memory is not None:
            self._memory.free()
            self._memory = None
        self._memory = DeviceMemory(self._cuda, size)
        for prepared in self._prepared.values():
            prepared.forget_graph()
            prepared.has_run = False
            prepared.context.set_device_memory(self._memory.address, self._memory.size)

    def enqueue(self, prepared: Prepared, stream: Stream) -> None:
        """Queue a batch. From its second time on all its kernels are launched at once, if that can be.

        Raises:
            BackendError: TensorRT refuses.
        """
        if prepared.graph is None and prepared.can_record and prepared.has_run:
            # An engine that cannot be recorded runs all the same.
            prepared.can_record = False
            with contextlib.suppress(BackendError):
                prepared.graph = stream.capture(lambda: self._execute(prepared, stream))
                prepared.can_record = True
        if prepared.graph is not None:
            prepared.graph.launch(stream)
        else:
            self._execute(prepared, stream)
        prepared.has_run = True

    def _execute(self, prepared: Prepared, stream: Stream) -> None:
        self._log.errors.clear()
        if not prepared.context.execute_async_v3(stream.number):
            raise BackendError(
                f"{self._cuda.need} failed on a batch of {prepared.batch}: {self._log.reason()}",
                hint="if GPU memory ran out, a smaller --batch-size helps",
            )

    def forget(self) -> None:
        """Drop all contexts and their memory; they are made again when needed. Nothing may be running."""
        for prepared in self._prepared.values():
            prepared.forget_graph()
        self._prepared.clear()
        if self._memory is not None:
            self._memory.free()
            self._memory = None

    def close(self) -> None:
        """Keep the compiled kernels, drop the rest."""
        if self._kernels is not None:
            self._kernels.save()
            self._kernels = None
        self.forget()
        self._settings = None
        self._cache = None
