"""What is installed on this machine and what of it really works: everything is tried, nothing is assumed."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterator

from sad_runtime.backends.onnxruntime import Provider, provider_problem
from sad_runtime.devices import available_cores, cuda_devices
from sad_runtime.errors import UserError
from sad_runtime.tensorrt import Flavor, load_tensorrt

# Import name → extra. Importing them is the test: torch and torchvision of different builds install together
# and then fail.
_PACKAGES = {
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "calibrate",
    "torch": "calibrate",
    "torchvision": "calibrate",
    "safetensors": "calibrate",
    "sklearn": "calibrate",
    "matplotlib": "benchmark",
    "pyarrow": "parquet",
}
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "onnx_ir": "onnx-ir", "tensorrt_rtx": "tensorrt-rtx"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        what: What was looked at.
        works: Whether it can be used here.
        state: Version, or the reason why not.
        remedy: How to have it, where something can be done.
    """

    what: str
    works: bool
    state: str
    remedy: str | None = None

    def as_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return dataclasses.asdict(self)


def examine() -> list[Finding]:
    """Try everything that a command might need. Takes seconds: torch is imported if it is there."""
    return [
        Finding("Python", True, f"{platform.python_version()} ({sys.executable})"),
        Finding("machine", True, f"{platform.platform()}, {available_cores()} cores"),
        *_gpu(),
        *(_package(module, extra) for module, extra in _PACKAGES.items()),
        *_providers(),
        *(_tensorrt(flavor) for flavor in Flavor),
    ]


def _gpu() -> Iterator[Finding]:
    found = cuda_devices()
    if found.problem:
        yield Finding("GPU", False, found.problem)
    for device in found.devices:
        capability = ".".join(map(str, device.compute_capability))
        yield Finding(
            "GPU", True, f"{device.name}, compute capability {capability}, {device.memory / 2**30:.0f} GiB"
        )


def _package(module: str, extra: str) -> Finding:
    remedy = f'pip install "sad-deploy[{extra}]"'
    if importlib.util.find_spec(module) is None:
        return Finding(module, False, "not installed", remedy)
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything; the report is what this is for
        return Finding(module, False, f"does not import: {_one_line(error)}", f"reinstall it: {remedy}")
    return Finding(module, True, _version(module))


def _providers() -> Iterator[Finding]:
    for provider in Provider:
        problem = provider_problem(provider)
        what = f"onnxruntime on {provider}"
        if problem is None:
            yield Finding(what, True, f"{_onnxruntime_version()}, a session was created")
        else:
            remedy = 'pip install "sad-deploy[cuda]"' if cuda_devices().count else None
            yield Finding(what, False, problem, remedy)


def _tensorrt(flavor: Flavor) -> Finding:
    what = f"TensorRT ({flavor})"
    try:
        module = load_tensorrt(flavor, need=what)
    except UserError as error:
        missing = importlib.util.find_spec(flavor.module) is None
        return Finding(what, False, "not installed" if missing else error.message, error.hint)
    version = str(module.__version__)
    if cuda_devices().count:
        return Finding(what, True, f"{version}, builds and runs engines")
    if flavor is Flavor.RTX:
        return Finding(what, True, f"{version}, builds engines; running them needs a GPU")
    return Finding(what, False, f"{version}, needs a GPU to build and to run engines")


def _version(module: str) -> str:
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(module, module))
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def _onnxruntime_version() -> str:
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
