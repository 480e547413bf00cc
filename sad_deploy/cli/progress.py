"""How the command line shows that long work goes on: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sad_deploy.progress import Pace, Report

from .console import is_quiet, print_status

if TYPE_CHECKING:
    from rich.console import Console

_LINES_APART = 30.0
"""Seconds between two lines where the output is no terminal."""

_FIRST_LINE = 5.0
"""Seconds of work before the first one; what is shorter says nothing."""

_A_LINE_EVERY = 60.0
"""Seconds, where output is no terminal."""

_KNOWN_FROM = 0.05
"""Share of the work from which on what is left can be told."""

_ESTIMATED_OVER = 3600.0
"""Seconds of which rich knows the speed: a part of an attack may take minutes."""


@contextlib.contextmanager
def progress() -> Iterator[Report]:
    """Show the stages of some work on stderr, each with what it has left."""
    from .console import stderr

    if is_quiet() or not stderr.is_terminal:
        yield Lines(time.monotonic, print_status).report
        return
    with _bars(stderr) as report:
        yield report


@contextlib.contextmanager
def share_progress() -> Iterator[Callable[[str, float], None]]:
    """Draws which share of a long work is done; without a terminal, a line a minute.

    Yields:
        To be told the name of the part that is worked on, and the share that is done.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from .console import stderr

    is_terminal = stderr.is_terminal
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    drawn = Progress(
        *columns,
        console=stderr,
        transient=True,
        disable=not is_terminal,
        speed_estimate_period=_ESTIMATED_OVER,
    )
    with drawn:
        task = drawn.add_task("attacking", total=1.0)
        said = started = time.monotonic()

        def told(name: str, share: float) -> None:
            nonlocal said
            drawn.update(task, description=name, completed=share)
            now = time.monotonic()
            if not is_terminal and now - said > _A_LINE_EVERY:
                said = now
                left = (now - started) * (1 - share) / max(share, 1e-6) / 60
                soon = f", {left:.0f} min left at most" if share > _KNOWN_FROM else ""
                print_status(f"{name}: {share:.0%} done{soon}")

        yield told


class Lines:
    """A line now and then: how far a stage is, and what it has left.

    Args:
        clock: Seconds, never going back.
        say: Called with each line.
    """

    def __init__(self, clock: Callable[[], float], say: Callable[[str], None]) -> None:
        self._clock, self._say = clock, say
        self._pace = Pace(clock())
        self._next = clock() + _FIRST_LINE

    def report(self, stage: str, done: int, total: int) -> None:
        """As :data:`~sad_deploy.progress.Report`."""
        now = self._clock()
        self._pace.step(stage, now)
        if now < self._next or done == total:
            return
        self._next = now + _LINES_APART
        left = self._pace.left(stage, total - done, now)
        self._say(f"{stage}: {done} of {total}" + ("" if left is None else f", {duration(left)} left"))


@contextlib.contextmanager
def _bars(console: Console) -> Iterator[Report]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskID,
        TextColumn,
    )
    from rich.text import Text

    pace = Pace(time.monotonic())

    class Left(ProgressColumn):
        """rich's own estimate forgets what is longer ago than half a minute, which may be every step."""

        def render(self, task: Task) -> Text:
            steps = int((task.total or 0) - task.completed)
            left = pace.left(task.description, steps, time.monotonic()) if steps else None
            return Text("" if left is None else f"{duration(left)} left", "progress.remaining")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Left())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            pace.step(stage, time.monotonic())
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield report


def duration(seconds: float) -> str:
    """In the two largest units that it needs: ``45 s``, ``3 min 5 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
