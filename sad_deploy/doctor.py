"""What is installed on this machine, and what of it works.

onnxruntime's providers and TensorRT are loaded, since being installed says little of them. Packages are
looked up, which takes no time, and imported only if that is asked for.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import platform
import re
import sys
from collections.abc import Iterator, Sequence

from sad_runtime.backends.onnxruntime import Provider, provider_problem
from sad_runtime.devices import available_cores, cuda_devices
from sad_runtime.errors import UserError
from sad_runtime.tensorrt import Flavor, load_tensorrt

# Import name → extra.
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
    "pillow_heif": "heic",
    "timm": "timm",
    "transformers": "transformers",
    "tritonclient": "server",
}
_DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "onnx_ir": "onnx-ir",
    "pillow_heif": "pillow-heif",
    "tensorrt_rtx": "tensorrt-rtx",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: What ``--require`` calls it.
        what: What was looked at.
        works: Whether it can be used here.
        state: Version, or the reason why not.
        remedy: How to have it, where something can be done.
    """

    name: str
    what: str
    works: bool
    state: str
    remedy: str | None = None

    def as_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return dataclasses.asdict(self)


def examine(*, thorough: bool = False) -> list[Finding]:
    """Try what a command might need.

    Args:
        thorough: Import every package, which takes seconds: torch and torchvision of different builds install
            together and then fail.
    """
    return [
        Finding("python", "Python", True, f"{platform.python_version()} ({sys.executable})"),
        Finding("machine", "machine", True, f"{platform.platform()}, {available_cores()} cores"),
        *_gpu(),
        *(_package(module, extra, thorough=thorough) for module, extra in _PACKAGES.items()),
        *_providers(),
        _openvino(),
        *(_tensorrt(flavor) for flavor in Flavor),
    ]


def missing(findings: Sequence[Finding], required: Sequence[str]) -> list[Finding]:
    """What is required and does not work.

    Args:
        findings: All of them.
        required: Names.

    Raises:
        UserError: Nothing is called so.
    """
    names = [finding.name for finding in findings]
    if unknown := [name for name in required if name not in names]:
        raise UserError(
            f"there is nothing called {', '.join(unknown)} to require",
            hint=f"there are {', '.join(dict.fromkeys(names))}",
        )
    return [finding for finding in findings if finding.name in required and not finding.works]


def _gpu() -> Iterator[Finding]:
    found = cuda_devices()
    if found.problem:
        yield Finding("gpu", "GPU", False, found.problem)
    for device in found.devices:
        capability = ".".join(map(str, device.compute_capability))
        memory = f"{device.memory / 2**30:.0f} GiB"
        yield Finding("gpu", "GPU", True, f"{device.name}, compute capability {capability}, {memory}")


def _package(module: str, extra: str, *, thorough: bool) -> Finding:
    remedy = f'pip install "sad-deploy[{extra}]"'
    if importlib.util.find_spec(module) is None:
        return Finding(module, module, False, "not installed", remedy)
    problem = _import_problem(module) if thorough else _mismatch(module)
    if problem:
        return Finding(module, module, False, problem, f"reinstall it: {remedy}")
    return Finding(module, module, True, _version(module))


def _import_problem(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything; the report is what this is for
        return f"does not import: {_one_line(error)}"
    return None


def _mismatch(module: str) -> str | None:
    """Whether a package is built for another version of torch than there is, as it says itself."""
    if module == "torch":
        return None
    try:
        required, there = importlib.metadata.requires(module) or [], importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    exact = [found[1] for each in required if (found := re.match(r"torch\s*\(?==\s*([\d.]+)", each))]
    if exact and exact[0] != there.partition("+")[0]:
        return f"{_version(module)} is built for torch {exact[0]}, and torch {there} is installed"
    return None


def _providers() -> Iterator[Finding]:
    for provider in Provider:
        what = f"onnxruntime on {provider}"
        try:
            problem = provider_problem(provider)
        except Exception as error:  # one of two installed side by side leaves a package without contents
            again = "pip install --force-reinstall onnxruntime-gpu"
            yield Finding(provider.value, what, False, f"onnxruntime is broken: {_one_line(error)}", again)
            continue
        if problem is None:
            yield Finding(provider.value, what, True, f"{_onnxruntime_version()}, a session was created")
        else:
            remedy = 'pip install "sad-deploy[cuda]"' if cuda_devices().count else None
            yield Finding(provider.value, what, False, problem, remedy)


def _openvino() -> Finding:
    remedy = 'pip install "sad-deploy[openvino]"'
    if importlib.util.find_spec("openvino") is None:
        return Finding("openvino", "OpenVINO", False, "not installed", remedy)
    try:
        import openvino

        core = openvino.Core()
        devices = [
            f"{name} ({', '.join(core.get_property(name, 'OPTIMIZATION_CAPABILITIES'))})"
            for name in core.available_devices
        ]
    except Exception as error:  # whatever a broken installation raises is what the report is for
        return Finding("openvino", "OpenVINO", False, f"does not load: {_one_line(error)}", remedy)
    return Finding("openvino", "OpenVINO", True, f"{_version('openvino')} on {', '.join(devices)}")


def _tensorrt(flavor: Flavor) -> Finding:
    what = f"TensorRT ({flavor})"
    try:
        module = load_tensorrt(flavor, need=what)
    except UserError as error:
        absent = importlib.util.find_spec(flavor.module) is None
        return Finding(flavor.value, what, False, "not installed" if absent else error.message, error.hint)
    version = str(module.__version__)
    if cuda_devices().count:
        return Finding(flavor.value, what, True, f"{version}, builds and runs engines")
    if flavor is Flavor.RTX:
        return Finding(flavor.value, what, True, f"{version}, builds engines; running them needs a GPU")
    return Finding(flavor.value, what, False, f"{version}, needs a GPU to build and to run engines")


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
