from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from sad_runtime.devices import available_cores, cuda_devices


def driver_is_there() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def test_there_are_either_gpus_or_a_reason() -> None:
    found = cuda_devices()
    assert (found.count > 0) == (found.problem is None)
    for device in found.devices:
        assert device.name
        assert device.compute_capability >= (3, 0)
        assert device.memory > 1 << 28


@pytest.mark.skipif(driver_is_there(), reason="the machine has an NVIDIA driver")
def test_absent_driver_is_the_reason() -> None:
    assert cuda_devices().problem == "no NVIDIA driver (libcuda.so.1 was not found)"


def test_driver_without_a_gpu_is_the_reason(tmp_path) -> None:
    """A driver library that answers as NVIDIA's does where no GPU is visible: CUDA_ERROR_NO_DEVICE, 100."""
    source = tmp_path / "driver.c"
    source.write_text("int cuInit(unsigned flags) { return 100; }\n")
    built = subprocess.run(
        ["cc", "-shared", "-fPIC", source, "-o", tmp_path / "libcuda.so.1"], capture_output=True, check=False
    )
    if built.returncode:
        pytest.skip("needs a C compiler")
    code = "from sad_runtime.devices import cuda_devices; print(cuda_devices().problem)"
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout == "the NVIDIA driver sees no GPU\n"


def test_cores_follow_the_affinity() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from sad_runtime.devices import available_cores; print(available_cores())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "1\n"
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))
