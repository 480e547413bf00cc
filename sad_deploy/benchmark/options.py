"""What is to be measured, and for how long."""

from __future__ import annotations

import dataclasses
import math

from sad_runtime.choices import BackendChoice
from sad_runtime.errors import UserError

DEFAULT_BATCH_SIZES = (1, 8, 32)
"""Measured where none is asked for, as far as the engine takes them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured.

    Attributes:
        backends: Which, each of which must run here; all that do if empty.
        precisions: Which of the bundle's; all if empty.
        batch_sizes: Images a batch; :data:`DEFAULT_BATCH_SIZES` if empty.
        workers: Decoding threads; by default the cores this process may use.
        seconds: Time for each measurement; at least three rounds are made however long they take.
        images: Most images that are used.
    """

    backends: tuple[BackendChoice, ...] = ()
    precisions: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    workers: int | None = None
    seconds: float = 2.0
    images: int = 256

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise UserError(f"seconds must be a finite number of at least 0, got {self.seconds}")
        counts = [("batch size", size) for size in self.batch_sizes]
        counts += [("workers", 1 if self.workers is None else self.workers), ("images", self.images)]
        for name, value in counts:
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
