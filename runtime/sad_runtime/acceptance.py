"""Every graph and engine of a bundle on every backend that loads here, compared with its references."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from .backends.accept import accepted_figures
from .backends.load import DEFAULTS, GRAPH_BACKENDS, BackendOptions, load
from .bundle import Bundle
from .choices import BackendChoice
from .errors import BundleError, UserError
from .manifest import Engine, Graph
from .verification import References, Trial, Verification, verdict
from .verification.references import read_references

BATCH_SIZES = (1, 3)
"""And all images at once."""


@dataclasses.dataclass(frozen=True)
class Accepted:
    """One graph or engine on one backend.

    Attributes:
        file: Its name in the bundle.
        precision: Its label.
        backend: Where it ran, or would have.
        runs_on: Runtime and device; None where it does not load here.
        figures: The comparison; None where it does not load.
        shortfalls: Figures outside their tolerance, in words.
        problem: Why it does not load or run here.
        ms_per_image: Wall time at full batch.
    """

    file: str
    precision: str
    backend: str
    runs_on: str | None = None
    figures: Verification | None = None
    shortfalls: tuple[str, ...] = ()
    problem: str | None = None
    ms_per_image: float | None = None

    def ran(self, runs_on: str, trial: Trial) -> Accepted:
        """With what a trial of it found."""
        return dataclasses.replace(
            self,
            runs_on=runs_on,
            figures=trial.figures,
            shortfalls=trial.shortfalls,
            ms_per_image=1000 * (trial.seconds_per_image or 0.0),
        )

    @property
    def verdict(self) -> str:
        """``verified``, ``wrong``, or ``does not run``."""
        if self.figures is None:
            return "does not run"
        return "wrong" if self.shortfalls else "verified"


def verify_bundle(
    bundle: Bundle,
    *,
    backend: BackendChoice = BackendChoice.AUTO,
    precision: str | None = None,
    options: BackendOptions = DEFAULTS,
) -> Iterator[Accepted]:
    """Run what the bundle holds at batch 1, 3 and full.

    Args:
        bundle: With references; an export writes them.
        backend: This one alone; ``auto`` for all.
        precision: This one alone; None for all.
        options: How to run; its ``precision`` is not looked at.

    Yields:
        One result a file and backend, as soon as it is known.

    Raises:
        UserError: The bundle has no references, or nothing of this backend and precision.
    """
    references = read_references(bundle)
    if references is None:
        raise BundleError(
            f"{bundle.root} does not carry what PyTorch says of its images, so nothing can be compared",
            hint=f"sad-deploy export {bundle.root} adds it",
        )
    pairs = [
        (what, choice)
        for what, choice in _pairs(bundle)
        if (backend is BackendChoice.AUTO or choice is backend) and precision in (None, what.precision)
    ]
    if not pairs:
        raise UserError(
            f"{bundle.root} has nothing for backend {backend} in precision {precision or 'any'}",
            hint="sad-deploy inspect shows what it has",
        )
    for what, choice in pairs:
        yield _tried(bundle, what, choice, references, options)


def _pairs(bundle: Bundle) -> Iterator[tuple[Graph | Engine, BackendChoice]]:
    """Everything and where it runs."""
    for graph in bundle.manifest.graphs:
        for choice in GRAPH_BACKENDS:
            yield graph, choice
    for engine in bundle.manifest.engines:
        yield engine, BackendChoice(engine.flavor)


def _tried(
    bundle: Bundle,
    what: Graph | Engine,
    choice: BackendChoice,
    references: References,
    options: BackendOptions,
) -> Accepted:
    options = dataclasses.replace(options, precision=what.precision)
    found = Accepted(what.file, what.precision, choice.value)
    sizes: Sequence[int] = sorted({*BATCH_SIZES, len(references)})
    try:
        loaded = load(bundle, choice, options, file=what.file)
        with loaded.backend:
            trial = verdict(
                loaded.backend,
                references,
                precision=what.precision,
                tf32=options.tf32,
                batch_sizes=sizes,
                timed=len(references),
                known=accepted_figures(bundle, what.file),
            )
            return found.ran(loaded.backend.runs_on, trial)
    except UserError as error:
        return dataclasses.replace(found, problem=error.message)
