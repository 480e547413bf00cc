"""Which backend runs a bundle here. One asked for never falls back; ``auto`` says what it took and why."""

from __future__ import annotations

import dataclasses

from ..bundle import Bundle
from ..choices import BackendChoice
from ..devices import cuda_devices
from ..errors import BackendError, BundleError, MissingExtraError
from ..graph_metadata import contradictions
from ..tensorrt import Flavor
from .batch_limit import Notice, ignore
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
    bundle: Bundle,
    choice: BackendChoice = BackendChoice.AUTO,
    *,
    precision: str = "fp32",
    tf32: bool = False,
    notice: Notice = ignore,
) -> OpenedBackend:
    """Load a bundle's graph or engine, its file verified.

    ``auto`` takes, in this order: an engine of the bundle, if there is a GPU and its TensorRT; CUDA, if it
    really loads; the CPU.

    Args:
        bundle: Where from.
        choice: Which backend.
        precision: Which of the bundle's graphs or engines.
        tf32: Whether a GPU may round products of float32 to TF32. An engine was built with it or without.
        notice: Told once if GPU memory is short and batches become smaller.

    Raises:
        BackendError: The backend asked for cannot run here, or not with or without TF32 as asked for.
        MissingExtraError: Its package is not installed.
        BundleError: The bundle has no graph or engine for it, its file was changed, or it does not fit the
            manifest.
    """
    if choice is not BackendChoice.AUTO:
        return OpenedBackend(_open(bundle, choice, precision, tf32, notice), "asked for")
    if problem := cuda_devices().problem:
        return OpenedBackend(_open_cpu(bundle, precision), problem)
    engines = {engine.flavor for engine in bundle.manifest.engines if engine.precision == precision}
    preferred = [BackendChoice(flavor.value) for flavor in Flavor if flavor.value in engines]
    passed_over = []
    for candidate in (*preferred, BackendChoice.CUDA):
        try:
            backend = _open(bundle, candidate, precision, tf32, notice)
        except (BackendError, MissingExtraError) as error:
            passed_over.append(error.message)
        else:
            return OpenedBackend(backend, "; ".join(passed_over) or "the fastest that runs here")
    return OpenedBackend(_open_cpu(bundle, precision), "; ".join(passed_over))


def _open_cpu(bundle: Bundle, precision: str) -> Backend:
    """What ``auto`` ends with: leave to use TF32 binds nobody, and a CPU is never short of GPU memory."""
    return _open(bundle, BackendChoice.CPU, precision, False, ignore)


def _open(bundle: Bundle, choice: BackendChoice, precision: str, tf32: bool, notice: Notice) -> Backend:
    backend: Backend
    problems = []
    if choice in (BackendChoice.CPU, BackendChoice.CUDA):
        name = bundle.graph(precision).file
        if choice is BackendChoice.CPU and "bf16" in precision:
            raise BackendError(
                f"onnxruntime's CPU has no bf16 kernels, so {name} does not run on it",
                hint="a TensorRT engine runs it; on the CPU use --precision fp32",
            )
        if choice is BackendChoice.CPU and tf32:
            raise BackendError("the cpu backend has no TF32", hint="leave out --tf32, or use a GPU")
        backend = OnnxRuntimeBackend(bundle.file(name), Provider(choice.value), tf32=tf32, notice=notice)
    else:
        flavor = Flavor(choice.value)
        engine = bundle.engine(flavor.value, precision)
        name = engine.file
        bundle.file(engine.sidecar)
        backend = TensorRTBackend(bundle.file(name), flavor, tf32=tf32, notice=notice)
        if backend.info.onnx_sha256 != bundle.manifest.files[engine.graph]:
            problems.append(f"it is stale: {engine.graph} is not the graph that it was built from")
    expected = bundle.manifest.preprocessing.shape
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
