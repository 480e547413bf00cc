"""How long work tells that it goes on; the command line draws it, a library caller may ignore it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable

Report = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps to do)."""

Decoded = Callable[[int, int], None]
"""Called with (images decoded, images to decode)."""

_LATEST = 8
"""Steps that an estimate is made of: the first batches of a calibration take longer than the rest."""


class Pace:
    """How much longer a stage takes, by its latest steps.

    A step begins where the last one ended, whichever stage that was of: stages may interrupt each other. The
    first step of a stage, which may hold its start, counts only as long as there is no other.

    Args:
        now: Seconds of a clock that never goes back.
    """

    def __init__(self, now: float) -> None:
        self._last = now
        self._counts: dict[str, int] = defaultdict(int)
        self._steps: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_LATEST))

    def step(self, stage: str, now: float) -> None:
        """Note that a step of a stage has ended."""
        self._counts[stage] += 1
        if self._counts[stage] == 2:
            self._steps[stage].clear()
        self._steps[stage].append(now - self._last)
        self._last = now

    def left(self, stage: str, steps: int, now: float) -> float | None:
        """Seconds until so many more steps are done, which grow fewer also within a step; None before any."""
        taken = self._steps[stage]
        if not taken:
            return None
        return max(0.0, steps * sum(taken) / len(taken) - (now - self._last))
