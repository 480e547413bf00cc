"""Run a backend on a bundle's own images and compare: the acceptance test on the machine that runs it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..choices import Precision
from .agreement import Array, Verification, compare, worst
from .references import References
from .tolerances import TOLERANCES

QUICK_IMAGES = 4
_OUTPUTS = ("logits", "saliency", "plain_logits")
_MOST_RUNS, _ENOUGH_SECONDS = 5, 0.2
_AN_EXPORTS_IMAGES = 64
"""A tolerance's share of labels is one of so many."""


class Runnable(Protocol):
    """What is tried; a :class:`~sad_runtime.backends.protocol.Backend` is."""

    def run(self, images: Any, outputs: Sequence[str]) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a trial found.

    Attributes:
        figures: The worst over the batch sizes.
        shortfalls: Every figure outside its tolerance, in words; empty if all is well.
        seconds_per_image: Wall time; None where none was taken.
    """

    figures: Verification
    shortfalls: tuple[str, ...]
    seconds_per_image: float | None


def verdict(
    backend: Runnable,
    references: References,
    *,
    precision: str,
    tf32: bool = False,
    batch_sizes: Sequence[int],
    timed: int | None = None,
    known: Mapping[str, float] | None = None,
) -> Trial:
    """Run a backend on all references in batches of several sizes.

    Args:
        backend: Loaded.
        references: At least two images.
        precision: Label of the graph's precision.
        tf32: Whether products were rounded to TF32, which has the significand of fp16.
        batch_sizes: Images at once; each size is run over all images.
        timed: Images in the batch whose time is taken, after that; None for no time.
        known: The figures that the export accepted, where it accepted some outside their tolerance.

    Raises:
        BackendError: A batch could not be run.
    """
    found = [
        compare(references.taken(_run(backend, references.images, size)), references.wanted())
        for size in batch_sizes
    ]
    figures = worst(found)
    seconds = None
    if timed is not None:
        seconds = _seconds(backend, references.images[np.arange(timed) % len(references)])
    tolerance = TOLERANCES[Precision.FP16 if tf32 else Precision.lowest_of(precision)]
    few = _for(len(references), tolerance.label_agreement)
    export = Verification.of(known or {})
    accepted = {name for name, _ in export.outside(tolerance)} if export else set()
    tolerance = dataclasses.replace(tolerance, label_agreement=few)
    shortfalls = tuple(words for name, words in figures.outside(tolerance) if name not in accepted)
    return Trial(figures, shortfalls, seconds)


def _run(backend: Runnable, images: Array, size: int) -> dict[str, Array]:
    parts = [backend.run(images[i : i + size], _OUTPUTS) for i in range(0, len(images), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in _OUTPUTS}


def _seconds(backend: Runnable, batch: Array) -> float:
    """Wall time an image, the shortest of a few runs."""
    taken: list[float] = []
    while len(taken) < _MOST_RUNS and sum(taken) < _ENOUGH_SECONDS:
        started = time.perf_counter()
        backend.run(batch, _OUTPUTS)
        taken.append(time.perf_counter() - started)
    return min(taken) / len(batch)


def _for(count: int, agreement: float) -> float:
    """A share of labels, for fewer images: as many may differ as of an export's 64, and at least one."""
    differing = math.ceil((1 - agreement) * _AN_EXPORTS_IMAGES)
    return min(agreement, 1 - differing / count)
