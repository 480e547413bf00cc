"""Which backend runs a bundle here. One asked for never falls back; ``auto`` says what it took and why."""

from __future__ import annotations

import dataclasses
import importlib.util

from ..bundle import Bundle
from ..choices import BackendChoice
from ..devices import cuda_devices
from ..errors import BackendError, BundleError, MissingExtraError
from ..tensorrt import Flavor
from ..verification.record import Record, remembered
from .accept import check, is_verifiable, key, try_out, unlike
from .load import DEFAULTS, BackendOptions, file_of, load
from .protocol import Backend


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
    bundle: Bundle, choice: BackendChoice = BackendChoice.AUTO, options: BackendOptions = DEFAULTS
) -> OpenedBackend:
    """Load a bundle's graph or engine, its file verified and what it computes compared with references.

    The comparison, on a few of the bundle's own images, is made once for a file, runtime and device, and
    remembered. ``auto`` takes, in this order: an engine of the bundle, if there is a GPU and its TensorRT;
    CUDA, if it really loads; on the CPU the faster of onnxruntime and OpenVINO.

    Args:
        bundle: Where from.
        choice: Which backend.
        options: How.

    Raises:
        BackendError: The backend asked for cannot run here, or not with or without TF32 as asked for, or
            computes something else than the bundle's references say.
        MissingExtraError: Its package is not installed.
        BundleError: The bundle has no graph or engine for it, its file was changed, or it does not fit the
            manifest.
    """
    if choice is not BackendChoice.AUTO:
        backend, verified = _checked(bundle, choice, options)
        return OpenedBackend(backend, f"asked for; {verified}")
    if problem := cuda_devices().problem:
        return _fastest_on_cpu(bundle, options, [problem])
    engines = {engine.flavor for engine in bundle.manifest.engines if engine.precision == options.precision}
    preferred = [BackendChoice(flavor.value) for flavor in Flavor if flavor.value in engines]
    passed_over = []
    for candidate in (*preferred, BackendChoice.CUDA):
        try:
            backend, verified = _checked(bundle, candidate, options)
        except (BackendError, MissingExtraError) as error:
            passed_over.append(error.message)
        else:
            why = "; ".join(passed_over) or "the fastest that runs here"
            return OpenedBackend(backend, f"{why}; {verified}")
    return _fastest_on_cpu(bundle, options, passed_over)


def _checked(
    bundle: Bundle, choice: BackendChoice, options: BackendOptions, record: Record | None = None
) -> tuple[Backend, str]:
    loaded = load(bundle, choice, options)
    return loaded.backend, check(bundle, choice, loaded, options, record)


def _fastest_on_cpu(bundle: Bundle, options: BackendOptions, passed_over: list[str]) -> OpenedBackend:
    """Of those that run and are right here. Leave to use TF32 binds nobody, and a CPU has no GPU memory."""
    options = dataclasses.replace(options, tf32=False)
    rivals = [BackendChoice.CPU]
    if is_verifiable(bundle) and importlib.util.find_spec("openvino") is not None:
        rivals.append(BackendChoice.OPENVINO)
    if len(rivals) == 1:
        backend, verified = _checked(bundle, BackendChoice.CPU, options)
        return OpenedBackend(backend, "; ".join([*passed_over, verified]))
    right: dict[BackendChoice, Record] = {}
    problems: list[BackendError | BundleError] = []
    for rival in rivals:
        try:
            found = remembered(key(bundle, rival, options))
            if found is None or found.seconds_per_image is None:
                found = _tried(bundle, rival, options)
        except (BackendError, BundleError) as error:
            problems.append(error)
            continue
        if found.shortfalls and not options.unverified:
            file = file_of(bundle, rival, options.precision)
            problems.append(BackendError(unlike(bundle, rival, file, found)))
        else:
            right[rival] = found
    if not right:
        raise problems[0]
    seconds = {rival: record.seconds_per_image or 0.0 for rival, record in right.items()}
    fastest = min(seconds, key=lambda rival: seconds[rival])
    backend, verified = _checked(bundle, fastest, options, right[fastest])
    times = ", ".join(f"{rival} {1000 * taken:.3g} ms an image" for rival, taken in seconds.items())
    why = [*passed_over, *(error.message for error in problems)]
    why.append(f"the faster here: {times}" if len(right) > 1 else "what runs here")
    return OpenedBackend(backend, "; ".join([*why, verified]))


def _tried(bundle: Bundle, choice: BackendChoice, options: BackendOptions) -> Record:
    loaded = load(bundle, choice, options)
    with loaded.backend:
        found = try_out(bundle, choice, loaded, options, timed=True)
    assert found is not None
    return found
