"""What the machine has: CUDA GPUs, asked of the driver itself, its processor, the cores this process may use.

The driver library is called directly, so that the answer needs no CUDA toolkit, torch or TensorRT, and says
why there is no GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import platform
import re
from pathlib import Path

_DRIVER = "libcuda.so.1"
_COMPUTE_CAPABILITY_MAJOR = 75  # CUdevice_attribute
_COMPUTE_CAPABILITY_MINOR = 76
_ERROR_NO_DEVICE = 100  # CUresult


@dataclasses.dataclass(frozen=True)
class CudaDevice:
    """One GPU.

    Attributes:
        name: As the driver calls it.
        compute_capability: (major, minor), for example (8, 9).
        memory: Total memory in bytes.
    """

    name: str
    compute_capability: tuple[int, int]
    memory: int


@dataclasses.dataclass(frozen=True)
class CudaDevices:
    """The CUDA GPUs this process sees.

    Attributes:
        devices: In the driver's order; empty if there is none.
        problem: Why there is none; ``None`` if there is one.
    """

    devices: tuple[CudaDevice, ...]
    problem: str | None

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.devices)


def cuda_devices() -> CudaDevices:
    """Ask the NVIDIA driver for its GPUs. Never raises for a missing driver or GPU; no context is created."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return CudaDevices((), f"no NVIDIA driver ({_DRIVER} was not found)")
    try:
        _check(driver, driver.cuInit(0))
        count = ctypes.c_int()
        _check(driver, driver.cuDeviceGetCount(ctypes.byref(count)))
        devices = tuple(_device(driver, ordinal) for ordinal in range(count.value))
    except _DriverError as error:
        return CudaDevices((), str(error))
    if not devices:
        return CudaDevices((), "the NVIDIA driver sees no GPU")
    return CudaDevices(devices, None)


def available_cores() -> int:
    """Cores this process may use: its CPU affinity, and a container's CPU quota (cgroup 2), at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        # "max" is no quota and no number.
        cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return cores


class _DriverError(Exception):
    pass


def _check(driver: ctypes.CDLL, result: int) -> None:
    if result == _ERROR_NO_DEVICE:
        raise _DriverError("the NVIDIA driver sees no GPU")
    if result:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(result, ctypes.byref(text))
        raise _DriverError(
            f"the NVIDIA driver failed: {text.value.decode() if text.value else f'error {result}'}"
        )


def _device(driver: ctypes.CDLL, ordinal: int) -> CudaDevice:
    handle, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    _check(driver, driver.cuDeviceGet(ctypes.byref(handle), ordinal))
    _check(driver, driver.cuDeviceGetName(name, len(name), handle))
    _check(driver, driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle))
    capability = []
    for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR):
        value = ctypes.c_int()
        _check(driver, driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle))
        capability.append(value.value)
    return CudaDevice(name.value.decode(), (capability[0], capability[1]), memory.value)


def processor_name() -> str:
    """The processor as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(*, gpu: bool) -> str:
    """The first GPU as its driver names it, or the processor."""
    gpus = cuda_devices().devices
    return gpus[0].name if gpu and gpus else processor_name()


_TOLD_APART = re.compile(r"avx|amx|sse4|fma|f16c|vnni|asimd|sve|i8mm|bf16|fphp")


def processor_features() -> str:
    """The vector instructions that the system says the processor has, sorted; empty where it says nothing."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return " ".join(sorted(flag for flag in flags.split() if _TOLD_APART.search(flag)))
    return ""
