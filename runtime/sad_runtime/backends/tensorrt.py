"""The ``rtx`` and ``tensorrt`` backends: one engine runner over whichever module the flavor names.

Both modules have the same Python interface. Device memory goes through ``cuda.bindings.runtime``, so that a
serving host needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..cuda import CudaRuntime
from ..devices import cuda_devices, device_name
from ..errors import BackendError, BundleError
from ..extras import installed_version
from ..tensorrt import EngineInfo, Flavor, error_log, load_tensorrt
from ..tensorrt.engine import load_engine
from ..tensorrt.execution import Execution
from .batch_limit import BatchLimit, Notice, ignore
from .protocol import INPUT


def version(flavor: str) -> str:
    """Of a flavor's TensorRT, without importing it."""
    return f"TensorRT ({flavor}) {installed_version(Flavor(flavor).module.replace('_', '-'))}"


class TensorRTBackend:
    """A TensorRT engine on the first GPU; see :class:`~sad_runtime.backends.protocol.Backend`.

    A batch beyond the profile's largest is split, and one piece copied while another is computed; one below
    its smallest is filled up with its last image. Buffers are for the largest, or for what memory holds.

    Args:
        plan: The engine's file, with its sidecar beside it.
        flavor: Which TensorRT built it.
        tf32: Whether products of float32 may be rounded to TF32; the engine must have been built so.
        cuda_graphs: Whether to launch all kernels of a batch at once.
        notice: Told once if memory is short and batches become smaller.

    Attributes:
        info: What the engine's sidecar says.

    Raises:
        MissingExtraError: The flavor's package, or CUDA's Python bindings, are not installed.
        BackendError: No GPU; libraries that do not load; an engine of another version, for another GPU, or
            that differs in TF32.
        BundleError: The engine or its sidecar is damaged, another flavor's, or not one of images.
    """

    def __init__(
        self,
        plan: Path,
        flavor: Flavor,
        *,
        tf32: bool = False,
        cuda_graphs: bool = True,
        notice: Notice = ignore,
    ) -> None:
        self.name = str(flavor)
        self.runs_on = f"{version(flavor.value)} on {device_name(gpu=True)}"
        need = f"the {flavor} backend"
        if problem := cuda_devices().problem:
            raise BackendError(f"{need} needs an NVIDIA GPU: {problem}", hint="use --backend cpu")
        tensorrt: Any = load_tensorrt(flavor, need=need)
        cuda = CudaRuntime(extra=flavor.value, need=need)
        log = error_log(tensorrt)
        loaded = load_engine(tensorrt, log, plan, flavor, tf32=tf32)
        if loaded.input != INPUT:
            raise BundleError(f"{plan} must have the one input {INPUT!r}, it has {loaded.input!r}")
        self.info: EngineInfo = loaded.info
        self.input_shape: tuple[int, int, int] = loaded.input_shape
        self.output_names = tuple(loaded.outputs)
        self._limit = BatchLimit(loaded.largest, smallest=loaded.smallest, notice=notice)
        self._execution: Execution | None = Execution(
            cuda, tensorrt, log, flavor, loaded, plan, cuda_graphs=cuda_graphs
        )

    @property
    def max_batch(self) -> int | None:
        """The profile's largest batch, or what memory holds of it."""
        return self._limit.size

    def run(
        self, images: npt.NDArray[np.float32], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run a batch; see the protocol."""
        execution = self._execution
        if execution is None:
            raise RuntimeError("the backend is closed")
        return self._limit.fit(len(images), lambda size: execution.run(images, outputs, size))

    def compute(self, count: int) -> None:
        """Run the kernels of a batch without its copies, on whatever is there; for measuring.

        Args:
            count: Images, at most ``max_batch``.

        Raises:
            BackendError: The batch could not be run; it is not made smaller.
        """
        assert self._execution is not None
        assert self._limit.size is not None
        self._execution.compute(count, self._limit.size)

    def close(self) -> None:
        """Give the GPU's memory back, and keep compiled kernels for the next time."""
        if self._execution is not None:
            self._execution.close()
            self._execution = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
