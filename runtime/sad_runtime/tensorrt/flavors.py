"""``tensorrt`` and ``tensorrt_rtx``, two packages with one Python interface: what differs, in one table."""

from __future__ import annotations

import dataclasses
import enum


@dataclasses.dataclass(frozen=True)
class Differences:
    """What one package has that the other lacks.

    Attributes:
        module: Name of the Python module.
        builds_without_gpu: Whether an engine can be built where there is no GPU. Otherwise it is built on the
            GPU that it will run on.
        compute_capabilities: Whether a build names the GPUs that it is for.
        hardware_compatibility: Whether a build can be for newer GPUs than the one it is built on.
        timing_cache: Whether a build leaves measured kernels for the next one.
        runtime_cache: Whether kernels are compiled on first use, and kept in a cache between processes.
        cuda_graph_strategy: Whether the runtime captures CUDA graphs itself.
    """

    module: str
    builds_without_gpu: bool
    compute_capabilities: bool
    hardware_compatibility: bool
    timing_cache: bool
    runtime_cache: bool
    cuda_graph_strategy: bool


class Flavor(enum.StrEnum):
    """Which TensorRT; the values are the backends' names and those in the manifest."""

    RTX = "rtx"
    TENSORRT = "tensorrt"

    @property
    def differences(self) -> Differences:
        """Its row of the table."""
        return _TABLE[self]

    @property
    def module(self) -> str:
        """Name of the Python module."""
        return self.differences.module


_TABLE = {
    Flavor.RTX: Differences(
        module="tensorrt_rtx",
        builds_without_gpu=True,
        compute_capabilities=True,
        hardware_compatibility=False,
        timing_cache=False,
        runtime_cache=True,
        cuda_graph_strategy=True,
    ),
    Flavor.TENSORRT: Differences(
        module="tensorrt",
        builds_without_gpu=False,
        compute_capabilities=False,
        hardware_compatibility=True,
        timing_cache=True,
        runtime_cache=False,
        cuda_graph_strategy=False,
    ),
}
