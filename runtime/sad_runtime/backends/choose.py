"""Which backend runs a bundle here. One asked for never falls back; ``auto`` says what it took and why."""

from __future__ import annotations

import dataclasses

from ..backend_choice import BackendChoice
from ..bundle import Bundle
from ..devices import cuda_devices
from ..errors import BackendError, BundleError, MissingExtraError
from ..graph_metadata import contradictions
from ..tensorrt import Flavor
from .onnxruntime import OnnxRuntimeBackend, Provider
from .protocol import LOGITS, Backend
from .tensorrt import TensorRTBackend


@dataclasses.dataclass(frozen=True)
class OpenedBackend:
    """A loaded backend.

    Attributes:
        backend: Ready to run; the receiver closes it.
        reason: Why this one, in a few words.
    """

    backend: Backend
    reason: str


def open_backend(
    bundle: Bundle, choice: BackendChoice = BackendChoice.AUTO, *, precision: str = "fp32"
) -> OpenedBackend:
    """Load a bundle's graph or engine, its file verified.

    ``auto`` takes, in this order: an engine of the bundle, if there is a GPU and its TensorRT; CUDA, if it
    really loads; the CPU.

    Args:
        bundle: Where from.
        choice: Which backend.
        precision: Which of the bundle's graphs or engines.

    Raises:
        BackendError: The backend asked for cannot run here.
        MissingExtraError: Its package is not installed.
        BundleError: The bundle has no graph or engine for it, its file was changed, or it does not fit the
            manifest.
    """
    if choice is not BackendChoice.AUTO:
        return OpenedBackend(_open(bundle, choice, precision), "asked for")
    if problem := cuda_devices().problem:
        return OpenedBackend(_open(bundle, BackendChoice.CPU, precision), problem)
    engines = {engine.flavor for engine in bundle.manifest.engines if engine.precision == precision}
    preferred = [BackendChoice(flavor.value) for flavor in Flavor if flavor.value in engines]
    passed_over = []
    for candidate in (*preferred, BackendChoice.CUDA):
        try:
            backend = _open(bundle, candidate, precision)
        except (BackendError, MissingExtraError) as error:
            passed_over.append(error.message)
        else:
            return OpenedBackend(backend, "; ".join(passed_over) or "the fastest that runs here")
    return OpenedBackend(_open(bundle, BackendChoice.CPU, precision), "; ".join(passed_over))


def _open(bundle: Bundle, choice: BackendChoice, precision: str) -> Backend:
    backend: Backend
    if choice in (BackendChoice.CPU, BackendChoice.CUDA):
        name = bundle.graph(precision).file
        if choice is BackendChoice.CPU and "bf16" in precision:
            raise BackendError(
                f"onnxruntime's CPU has no bf16 kernels, so {name} does not run on it",
                hint="a TensorRT engine runs it; on the CPU use --precision fp32",
            )
        backend = OnnxRuntimeBackend(bundle.file(name), Provider(choice.value))
    else:
        flavor = Flavor(choice.value)
        name = bundle.engine(flavor.value, precision).file
        backend = TensorRTBackend(bundle.file(name), flavor)
    expected = bundle.manifest.preprocessing.shape
    problems = []
    if backend.input_shape != expected:
        problems.append(f"it takes images of {backend.input_shape}, the manifest says {expected}")
    if LOGITS not in backend.output_names:
        problems.append(f"it has no output {LOGITS!r}, only {', '.join(backend.output_names)}")
    if isinstance(backend, OnnxRuntimeBackend):
        problems += contradictions(backend.metadata, bundle.manifest.defence, bundle.manifest.input_space)
    if problems:
        backend.close()
        raise BundleError(
            f"{bundle.root}: {name}: {' and '.join(problems)}", hint=f"sad-deploy export {bundle.root}"
        )
    return backend
