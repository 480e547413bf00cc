"""Where output goes: results to stdout, all else to stderr. Colours follow NO_COLOR and the terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape

EXIT_SOME_IMAGES_FAILED = 3
EXIT_INTERRUPTED = 130

# Wide enough when there is no terminal that a table in a log file is not folded.
_WIDTH_WITHOUT_TERMINAL = 120


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH_WITHOUT_TERMINAL
    return console


stdout = _console(stderr=False)
stderr = _console(stderr=True)


@contextlib.contextmanager
def interruptible(consequence: str) -> Iterator[None]:
    """Say on Ctrl-C what it left behind; the exit code is the entry point's business."""
    try:
        yield
    except KeyboardInterrupt:
        print_error(f"interrupted; {consequence}")
        raise


def print_error(message: str) -> None:
    """One line on stderr: what is wrong."""
    stderr.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


def print_hint(message: str) -> None:
    """One line on stderr: what to do about it."""
    stderr.print(f"[bold cyan]hint:[/] {escape(message)}", soft_wrap=True)


def print_warning(message: str) -> None:
    """One line on stderr: what went through but deserves a look."""
    stderr.print(f"[bold yellow]warning:[/] {escape(message)}", soft_wrap=True)


def print_note(message: str) -> None:
    """One line on stderr: what was chosen or left out on the user's behalf."""
    stderr.print(f"[bold]note:[/] {escape(message)}", soft_wrap=True)


def print_status(message: str) -> None:
    """One line on stderr: what is being done or was done."""
    stderr.print(escape(message), soft_wrap=True)
