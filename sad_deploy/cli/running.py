"""A run on a terminal: its progress, Ctrl-C, and the command that resumes it."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from sad_runtime.choices import Target

from . import console
from .console import EXIT_INTERRUPTED, print_hint, print_status

if TYPE_CHECKING:
    from sad_runtime.classifier import Classifier
    from sad_runtime.results import Row
    from sad_runtime.run import JournaledRun
    from sad_runtime.sources import Sources


def say_backend(classifier: Classifier, precision: str) -> None:
    """Where the bundle runs and why, and whether there is a faster graph for it."""
    print_status(f"backend {classifier.backend_name} ({classifier.backend_reason})")
    target = classifier.bundle.graph(precision, (Target.CPU,)).target
    fits = (classifier.backend_name, precision, target) == ("cpu", "fp32", "portable")
    if fits and not classifier.bundle.is_bare:
        again = f"sad-deploy export {shlex.quote(str(classifier.bundle.root))}"
        print_hint(f"onnxruntime's CPU has a faster form of this graph: {again}")


def resume_command() -> str:
    """The command that is running, with --resume."""
    words = [word for word in sys.argv[1:] if word not in ("--resume", "--overwrite")]
    words.insert(words.index("infer") + 1, "--resume")
    return shlex.join(["sad-deploy", *words])


@contextlib.contextmanager
def drawn_progress(run: JournaledRun) -> Iterator[Iterator[list[Row]]]:
    """The run's batches, to iterate over, with a bar on a terminal.

    Raises:
        KeyboardInterrupt: At the end: a signal asked for it; the rows of the batch in flight are written.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    is_terminal = console.stderr.is_terminal
    progress = Progress(
        TextColumn("images"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console.stderr,
        transient=True,
        disable=not is_terminal,
    )
    with progress, _ended_by_signals(run.stop):
        task = progress.add_task("images", total=None, rate="")
        if is_terminal:
            _count_aside(run.sources, lambda total: progress.update(task, total=total))

        def batches() -> Iterator[list[Row]]:
            for rows in run:
                done = run.summary.done + (run.summary.skipped or 0)
                progress.update(task, completed=done, rate=f"{run.summary.rate:.0f}/s")
                yield rows

        yield batches()


def _count_aside(sources: Sources, use: Callable[[int | None], None]) -> None:
    """Count in another thread, which may take minutes where images are many or far away."""

    def count() -> None:
        with contextlib.suppress(Exception):  # whatever is wrong with the sources, the run itself will say
            use(sources.count())

    threading.Thread(target=count, name="count", daemon=True).start()


@contextlib.contextmanager
def _ended_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM stop the run in good order, and a second one end it at once.

    Raises:
        KeyboardInterrupt: At the end, if a signal came.
    """
    came = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            console.stderr.show_cursor(True)
            os._exit(EXIT_INTERRUPTED)
        came = True
        stop()

    before: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt
