"""Run an engine on batches of any size, piece by piece, copying while it computes.

Two slots of buffers, one stream for copies, one for kernels. While piece i is computed from one slot, piece
i + 1 is copied into the other; the results of i are copied out while i + 1 is computed::

    copies    in 0 │ in 1 │ out 0 │ in 2 │ out 1 │ out 2
    kernels        │ 0    │ 1            │ 2     │
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cuda import CudaRuntime, DeviceMemory, Event, PinnedMemory, Stream
from .contexts import Contexts, Prepared
from .engine import LoadedEngine
from .flavors import Flavor

Images = npt.NDArray[np.float32]

_FLOAT32_BYTES = 4


class _Slot:
    """Buffers for one piece, on both sides.

    Args:
        cuda: The CUDA runtime.
        loaded: The engine.
        capacity: Images.
    """

    def __init__(self, cuda: CudaRuntime, loaded: LoadedEngine, capacity: int) -> None:
        self._cuda = cuda
        self._capacity = capacity
        self._rows = {loaded.input: loaded.input_shape, **loaded.outputs}
        self._host_outputs: dict[str, PinnedMemory] = {}
        with contextlib.ExitStack() as stack:

            def own(thing: Any) -> Any:
                stack.callback(thing.free)
                return thing

            self.device: dict[str, DeviceMemory] = {
                name: own(DeviceMemory(cuda, self.bytes(name, capacity))) for name in self._rows
            }
            self.host_input: PinnedMemory = own(
                PinnedMemory(cuda, (capacity, *loaded.input_shape), np.float32)
            )
            self.copied_in: Event = own(Event(cuda))
            self.computed: Event = own(Event(cuda))
            self.copied_out: Event = own(Event(cuda))
            self._resources = stack.pop_all()

    def bytes(self, name: str, count: int) -> int:
        """Size of a tensor of so many images."""
        return count * math.prod(self._rows[name]) * _FLOAT32_BYTES

    def host_output(self, name: str) -> PinnedMemory:
        """Where an output is copied to; there only once it was asked for."""
        if name not in self._host_outputs:
            memory = PinnedMemory(self._cuda, (self._capacity, *self._rows[name]), np.float32)
            self._resources.callback(memory.free)
            self._host_outputs[name] = memory
        return self._host_outputs[name]

    def free(self) -> None:
        """Give all of it back."""
        self._resources.close()


class Execution:
    """An engine with everything it needs to run.

    Args:
        cuda: The CUDA runtime.
        tensorrt: The flavor's module.
        log: Of :func:`~sad_runtime.tensorrt.error_log`.
        flavor: Which TensorRT.
        loaded: The engine, which is closed with this.
        plan: Its file.
        cuda_graphs: Whether to launch all kernels of a batch at once.

    Raises:
        BackendError: The GPU does not answer.
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
        self._loaded = loaded
        self._slots: list[_Slot] = []
        self._slot_size = 0
        with contextlib.ExitStack() as stack:
            stack.callback(loaded.close)
            self._copies = Stream(cuda)
            stack.callback(self._copies.free)
            self._kernels = Stream(cuda)
            stack.callback(self._kernels.free)
            self._contexts = Contexts(cuda, tensorrt, log, flavor, loaded, plan, cuda_graphs=cuda_graphs)
            stack.callback(self._contexts.close)
            self._resources = stack.pop_all()

    def run(self, images: Images, outputs: Sequence[str], size: int) -> dict[str, Images]:
        """Run a batch in pieces.

        Args:
            images: (N, C, H, W).
            outputs: Which outputs to copy back.
            size: Images in a piece, at most; buffers are for so many.

        Returns:
            The outputs by name, first axis N.

        Raises:
            OutOfDeviceMemoryError: A piece does not fit.
            BackendError: The engine or the GPU failed. In either case all buffers were given back.
        """
        try:
            return self._run(images, outputs, size)
        except BaseException:
            # Whatever was going on, the next run begins from nothing.
            self._forget()
            raise

    def _run(self, images: Images, outputs: Sequence[str], size: int) -> dict[str, Images]:
        starts = range(0, len(images), size)
        pieces = [images[start : start + size] for start in starts]
        results = {name: np.empty((len(images), *self._loaded.outputs[name]), np.float32) for name in outputs}
        self._reserve(size, slots=min(2, len(pieces)))
        # All contexts first: making one may move the memory that the others use.
        prepared = [self._prepare(len(piece), i % 2) for i, piece in enumerate(pieces)]

        def collect(i: int) -> None:
            slot, count = self._slots[i % 2], len(pieces[i])
            slot.copied_out.wait()
            for name, result in results.items():
                result[starts[i] : starts[i] + count] = slot.host_output(name).array[:count]

        self._copy_in(self._slots[0], pieces[0], prepared[0])
        for i, piece in enumerate(pieces):
            slot = self._slots[i % 2]
            self._kernels.wait_for(slot.copied_in)
            self._contexts.enqueue(prepared[i], self._kernels)
            self._kernels.record(slot.computed)
            if i + 1 < len(pieces):
                if i > 0:
                    collect(i - 1)  # frees the slot that comes next
                # Before the results of this piece are queued, or it would wait for them.
                self._copy_in(self._slots[(i + 1) % 2], pieces[i + 1], prepared[i + 1])
            self._copies.wait_for(slot.computed)
            for name in outputs:
                self._copies.to_host(slot.host_output(name), slot.device[name], slot.bytes(name, len(piece)))
            self._copies.record(slot.copied_out)
        for i in range(max(0, len(pieces) - 2), len(pieces)):
            collect(i)
        return results

    def compute(self, count: int, size: int) -> None:
        """Run the kernels alone, on whatever lies in the buffers, and wait for them; for measuring.

        Args:
            count: Images, at most ``size``.
            size: As for :meth:`run`.

        Raises:
            BackendError: See :meth:`run`.
        """
        try:
            self._reserve(size, slots=1)
            self._contexts.enqueue(self._prepare(count, 0), self._kernels)
            self._kernels.wait()
        except BaseException:
            self._forget()
            raise

    def _copy_in(self, slot: _Slot, piece: Images, prepared: Prepared) -> None:
        """Queue a piece's way to the GPU, filled up with its last image to what the engine takes."""
        slot.host_input.array[: len(piece)] = piece
        slot.host_input.array[len(piece) : prepared.batch] = piece[-1]
        name = self._loaded.input
        self._copies.to_device(slot.device[name], slot.host_input, slot.bytes(name, prepared.batch))
        self._copies.record(slot.copied_in)

    def _prepare(self, count: int, slot: int) -> Prepared:
        addresses = {name: memory.address for name, memory in self._slots[slot].device.items()}
        return self._contexts.prepare(max(count, self._loaded.smallest), slot, addresses)

    def _reserve(self, size: int, *, slots: int) -> None:
        """Have slots for pieces of a size; the second only where there is a second piece."""
        size = max(size, self._loaded.smallest)
        if size != self._slot_size:
            self._forget()
            self._slot_size = size
        while len(self._slots) < slots:
            self._slots.append(_Slot(self._cuda, self._loaded, size))

    def _forget(self) -> None:
        self._copies.settle()
        self._kernels.settle()
        self._contexts.forget()
        while self._slots:
            self._slots.pop().free()
        self._slot_size = 0

    def close(self) -> None:
        """Give everything back. May be called twice."""
        self._forget()
        self._resources.close()
