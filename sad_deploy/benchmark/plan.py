"""Which backends, precisions and batch sizes are measured; what cannot be is found before any is."""

from __future__ import annotations

import dataclasses

from sad_runtime.backends import Backend
from sad_runtime.backends.load import GRAPH_BACKENDS
from sad_runtime.bundle import Bundle
from sad_runtime.choices import BackendChoice
from sad_runtime.classifier import Classifier
from sad_runtime.errors import BackendError, BundleError, MissingExtraError, UserError

from .figures import NotMeasured
from .options import DEFAULT_BATCH_SIZES, Options

_GRAPH_BACKENDS = (BackendChoice.AUTO, *GRAPH_BACKENDS)


@dataclasses.dataclass(frozen=True)
class Combination:
    """What is loaded once.

    Attributes:
        backend: A backend that runs here; never ``auto``.
        precision: One that the bundle has for it.
        batch_sizes: What it is given, each once.
    """

    backend: BackendChoice
    precision: str
    batch_sizes: tuple[int, ...]


def plan(bundle: Bundle, options: Options) -> tuple[list[Combination], list[NotMeasured]]:
    """Try every backend: load it and close it again.

    Args:
        bundle: What is to be measured.
        options: What was asked for.

    Returns:
        What runs here, and what does not, with the reason.

    Raises:
        BackendError: A backend that was asked for does not run here, in any precision or one that was asked
            for; or none does.
        MissingExtraError: Its package is not installed.
        BundleError: The bundle has no graph, or not what was asked for; or its files are not usable.
        UserError: A batch size that was asked for is too large for an engine.
    """
    _check_precisions(bundle, options)
    backends = options.backends or tuple(choice for choice in BackendChoice if choice != BackendChoice.AUTO)
    found: list[Combination] = []
    passed_over: list[tuple[BackendChoice, str, UserError]] = []
    for backend in backends:
        runs = False
        for precision in options.precisions or _precisions(bundle, backend) or ("fp32",):
            try:
                combination = _try(bundle, backend, precision, options)
            except _PassedOverError as passed:
                if options.backends and options.precisions:
                    raise passed.error from None
                passed_over.append((backend, precision, passed.error))
                continue
            runs = True
            if combination not in found:  # auto is one of the others
                found.append(combination)
        if options.backends and not runs:
            raise passed_over[-1][2]
    not_measured = [
        NotMeasured(backend=backend.value, precision=precision, reason=error.message)
        for backend, precision, error in passed_over
    ]
    if not found:
        raise BackendError(
            f"no backend runs {bundle.root} here: "
            + "; ".join(f"{entry.backend} {entry.precision}: {entry.reason}" for entry in not_measured)
        )
    return found, not_measured


class _PassedOverError(Exception):
    """A backend that does not run here, or that the bundle has nothing for."""

    def __init__(self, error: UserError) -> None:
        super().__init__(error.message)
        self.error = error


def _check_precisions(bundle: Bundle, options: Options) -> None:
    bundle.graph(next((graph.precision for graph in bundle.manifest.graphs), "fp32"))  # there is one
    engines = {engine.precision for engine in bundle.manifest.engines}
    for precision in options.precisions:
        if precision not in engines:
            bundle.graph(precision)


def _precisions(bundle: Bundle, backend: BackendChoice) -> tuple[str, ...]:
    """What the bundle has for a backend, in the manifest's order."""
    if backend in _GRAPH_BACKENDS:
        return tuple(dict.fromkeys(graph.precision for graph in bundle.manifest.graphs))
    engines = (engine for engine in bundle.manifest.engines if engine.flavor == backend.value)
    return tuple(dict.fromkeys(engine.precision for engine in engines))


def _try(bundle: Bundle, backend: BackendChoice, precision: str, options: Options) -> Combination:
    """Load and close it.

    Raises:
        _PassedOverError: It does not run here.
        UserError: Something is wrong that must not be passed over: a damaged file, a wish that cannot be met.
    """
    try:
        if backend in _GRAPH_BACKENDS:
            bundle.graph(precision)
        else:
            bundle.engine(backend.value, precision)
    except BundleError as error:
        raise _PassedOverError(error) from error
    try:
        classifier = Classifier.load(bundle, backend=backend, precision=precision)
    except (BackendError, MissingExtraError) as error:
        raise _PassedOverError(error) from error
    with classifier:
        sizes = batch_sizes(classifier.backend, options)
        return Combination(BackendChoice(classifier.backend_name), precision, sizes)


def batch_sizes(backend: Backend, options: Options) -> tuple[int, ...]:
    """The batch sizes to measure, each once; those of the default that the backend takes in one piece.

    Args:
        backend: A loaded one.
        options: What was asked for.

    Raises:
        UserError: One that was asked for is more than the backend takes.
    """
    largest = backend.max_batch
    if not options.batch_sizes:
        if largest is None:
            return DEFAULT_BATCH_SIZES
        return tuple(size for size in DEFAULT_BATCH_SIZES if size <= largest)
    sizes = tuple(dict.fromkeys(options.batch_sizes))
    if largest is not None and max(sizes) > largest:
        raise UserError(
            f"a batch of {max(sizes)} is more than the {backend.name} engine takes at once, {largest}",
            hint=f"measure up to --batch {largest}, or build the engine for more: sad-deploy export --trt "
            f"--batch 1:8:{max(sizes)}",
        )
    return sizes
