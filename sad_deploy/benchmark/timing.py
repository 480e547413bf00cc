"""Wall and CPU time of jobs that take turns, so that what disturbs the machine disturbs them alike."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping

ROUNDS = 3
"""Rounds that are made however long they take."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of every round.

    Attributes:
        wall: By the clock.
        cpu: Of all threads of the process.
    """

    wall: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)

    @property
    def rounds(self) -> int:
        """How many."""
        return len(self.wall)

    @property
    def median_wall(self) -> float:
        """Median of the wall times."""
        return statistics.median(self.wall)

    @property
    def median_cpu(self) -> float:
        """Median of the CPU times."""
        return statistics.median(self.cpu)

    def wall_percentile(self, percent: float) -> float:
        """The smallest wall time that at least ``percent`` of the rounds do not exceed."""
        return sorted(self.wall)[max(math.ceil(percent / 100 * self.rounds), 1) - 1]

    def add(self, job: Callable[[], object]) -> None:
        """Run a job and note its times."""
        wall, cpu = time.perf_counter(), time.process_time()
        job()
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)


def take_turns(jobs: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Timing]:
    """Time jobs in rounds, every job once a round.

    Args:
        jobs: What to run, by name.
        seconds: No round begins later than this after the first, but for the first :data:`ROUNDS`.

    Returns:
        The times, by name.
    """
    timings = {name: Timing() for name in jobs}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < ROUNDS or time.perf_counter() < end:
        for name, job in jobs.items():
            timings[name].add(job)
        rounds += 1
    return timings
