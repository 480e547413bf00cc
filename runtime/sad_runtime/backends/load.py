"""Load a bundle's graph or engine on a backend, its file verified and compared with the manifest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..bundle import Bundle
from ..choices import BackendChoice, Target
from ..errors import BackendError, BundleError
from ..graph_metadata import contradictions
from ..tensorrt import Flavor
from .batch_limit import Notice, ignore
from .onnxruntime import OnnxRuntimeBackend, Provider
from .openvino import OpenVinoBackend
from .plain import PlainBackend
from .protocol import INPUT, LOGITS, Backend
from .tensorrt import TensorRTBackend

GRAPH_BACKENDS = (BackendChoice.CPU, BackendChoice.OPENVINO, BackendChoice.CUDA)
"""Those that run graphs; the others run engines."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """How a bundle is run, but for where.

    Attributes:
        precision: Which of the bundle's graphs or engines.
        tf32: Whether a GPU may round products of float32 to TF32. An engine was built with it or without.
        device: OpenVINO's name of the device that the ``openvino`` backend takes.
        unverified: Run also what does not compute here what the bundle's references say.
        notice: Called with a line if memory is short and batches become smaller, or for what ``unverified``
            lets pass.
    """

    precision: str = "fp32"
    tf32: bool = False
    device: str = "CPU"
    unverified: bool = False
    notice: Notice = ignore


DEFAULTS = BackendOptions()


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A loaded graph or engine.

    Attributes:
        backend: Ready to run; the receiver closes it.
        file: Its name in the bundle.
    """

    backend: Backend
    file: str


def forms(choice: BackendChoice, precision: str) -> tuple[Target, ...]:
    """Which of a graph's forms a backend takes, the best first.

    In int8 the portable one is TensorRT's, with signed activations: processors without VNNI add their
    products in 16 bits, which overflow in OpenVINO (docs/portability.md).
    """
    if choice is BackendChoice.CPU or (choice is BackendChoice.OPENVINO and "int8" in precision):
        return Target.CPU, Target.PORTABLE
    return Target.PORTABLE, Target.CPU


def file_of(bundle: Bundle, choice: BackendChoice, precision: str) -> str:
    """The file that a backend runs.

    Raises:
        BundleError: There is none.
    """
    if choice in GRAPH_BACKENDS:
        return bundle.graph(precision, forms(choice, precision)).file
    return bundle.engine(Flavor(choice.value).value, precision).file


def load(
    bundle: Bundle, choice: BackendChoice, options: BackendOptions, *, file: str | None = None
) -> Loaded:
    """Load one, whatever else there is.

    Args:
        bundle: Where from.
        choice: Any but ``auto``.
        options: How.
        file: This graph of the bundle instead of the one that suits the backend best.

    Raises:
        UserError: As for :func:`~sad_runtime.backends.open_backend`.
    """
    name = file or file_of(bundle, choice, options.precision)
    backend: Backend
    problems = []
    if choice in GRAPH_BACKENDS:
        if bundle.plain is not None:
            inner = open_graph(bundle.file(name), choice, options, image=bundle.plain.image)
            return Loaded(PlainBackend(inner, bundle.plain), name)
        backend = open_graph(bundle.file(name), choice, options)
        problems += contradictions(backend.metadata, bundle.manifest.defence, bundle.manifest.input_space)
    else:
        flavor = Flavor(choice.value)
        engine = bundle.engine(flavor.value, options.precision)
        bundle.file(engine.sidecar)
        backend = TensorRTBackend(bundle.file(name), flavor, tf32=options.tf32, notice=options.notice)
        if backend.info.onnx_sha256 != bundle.manifest.files[engine.graph]:
            problems.append(f"it is stale: {engine.graph} is not the graph that it was built from")
    expected = bundle.manifest.preprocessing.shape
    if backend.input_shape != expected:
        problems.append(f"it takes images of {backend.input_shape}, the manifest says {expected}")
    if LOGITS not in backend.output_names:
        problems.append(f"it has no output {LOGITS!r}, only {', '.join(backend.output_names)}")
    if problems:
        backend.close()
        raise BundleError(
            f"{bundle.root}: {name}: {' and '.join(problems)}", hint=f"sad-deploy export {bundle.root}"
        )
    return Loaded(backend, name)


def open_graph(
    path: Path, choice: BackendChoice, options: BackendOptions, *, image: str = INPUT
) -> OnnxRuntimeBackend | OpenVinoBackend:
    """Load a graph's file.

    Args:
        path: The file.
        choice: One of :data:`GRAPH_BACKENDS`.
        options: How; its ``precision`` is the graph's.
        image: Name of the graph's input.

    Raises:
        BackendError: It cannot run here, or not as asked for.
        MissingExtraError: The backend's package is not installed.
        BundleError: The graph's input is not a batch of images of one size.
    """
    if options.tf32 and choice is not BackendChoice.CUDA:
        raise BackendError(f"the {choice} backend has no TF32", hint="leave out --tf32, or use a GPU")
    precision = options.precision
    if choice is BackendChoice.OPENVINO:
        return OpenVinoBackend(
            path, precision=precision, device=options.device, image=image, notice=options.notice
        )
    if choice is BackendChoice.CPU and "bf16" in precision:
        raise BackendError(
            f"onnxruntime's CPU has no bf16 kernels, so {path.name} does not run on it",
            hint="a TensorRT engine runs it; on the CPU use --precision fp32",
        )
    return OnnxRuntimeBackend(
        path, Provider(choice.value), tf32=options.tf32, image=image, notice=options.notice
    )
