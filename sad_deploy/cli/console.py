"""Where output goes: results to stdout, all else to stderr. Colours follow NO_COLOR and the terminal.

Output never ends the work: what a console cannot encode is written in ASCII, and what goes to a reader that
has gone away is dropped. rich is imported with the first line that is written: ``--help`` does without.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sad_runtime.errors import UserError, reason_of

if TYPE_CHECKING:
    from rich.console import Console

    stdout: Console
    stderr: Console

EXIT_SOME_IMAGES_FAILED = 3
EXIT_INTERRUPTED = 130

# Wide enough when there is no terminal that a table in a log file is not folded.
_WIDTH_WITHOUT_TERMINAL = 120

_ASCII: dict[str, str | int | None] = {
    "→": "->", "×": "x", "·": "*", "…": "...", "–": "-", "—": "-", "−": "-", "²": "2", "≈": "~", "≤": "<=",
    "≥": ">=", "‖": "||", "✓": "+", "━": "-", "η": "eta", "Φ": "Phi", "σ": "sigma", "∂": "d", "µ": "u",
}  # fmt: skip
"""What is written where a console has no Unicode."""


@dataclasses.dataclass
class _Talk:
    """How much is said on stderr."""

    quiet: bool = False
    verbose: bool = False
    log: IO[str] | None = None
    started: float = dataclasses.field(default_factory=time.monotonic)
    last_was_shown: bool = True


_talk = _Talk()


def talk(*, quiet: bool, verbose: bool, log_file: Path | None) -> None:
    """Decide how much is said.

    Args:
        quiet: Nothing but results, warnings and errors.
        verbose: Also how much time has passed, TensorRT's log, and the traceback of an error.
        log_file: Whatever is or would be said is added to it, with the time.

    Raises:
        UserError: The file cannot be written.
    """
    _talk.quiet, _talk.verbose = quiet, verbose
    _talk.log = None
    if log_file is not None:
        try:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            _talk.log = log_file.open("a", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(
                f"cannot write {log_file}: {reason_of(error)}", hint="choose another --log-file"
            ) from error


def is_quiet() -> bool:
    """Whether only results, warnings and errors are wanted."""
    return _talk.quiet


def is_verbose() -> bool:
    """Whether everything is wanted."""
    return _talk.verbose


def __getattr__(name: str) -> Any:
    """``stdout`` and ``stderr``, made when they are first asked for (PEP 562)."""
    if name not in ("stdout", "stderr"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _console(name)


@functools.cache
def _console(name: str) -> Console:
    from rich.console import Console

    class Tolerant(Console):
        def on_broken_pipe(self) -> None:
            """Go on without: rich's own ends the process."""
            silence(sys.stderr if self.stderr else sys.stdout)

    console = Tolerant(stderr=name == "stderr", highlight=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH_WITHOUT_TERMINAL
    return console


def prepare_streams() -> None:
    """Let stdout and stderr take any text, and keep the numbers of closed ones from files that are opened."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="readable")


def _readable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(str.maketrans(_ASCII))
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error("readable", _readable)


def readable(text: str) -> str:
    """A text as stdout can show it."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "readable").decode(encoding)


def silence(stream: IO[str] | None) -> None:
    """Send to nowhere what is written from now on: the reader has gone."""
    with contextlib.suppress(OSError, ValueError):
        if stream is not None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def flush_streams() -> None:
    """Write what is left, as far as somebody reads it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (BrokenPipeError, ValueError):
            silence(stream)


@contextlib.contextmanager
def interruptible(consequence: str) -> Iterator[None]:
    """Say on Ctrl-C what it left behind; the exit code is the entry point's business."""
    try:
        yield
    except KeyboardInterrupt:
        print_error(f"interrupted; {consequence}")
        raise


def print_result(result: Any) -> None:
    """A table, or a line of text as it stands, on stdout."""
    _console("stdout").print(result, markup=False, soft_wrap=isinstance(result, str))


def print_json(value: Any) -> None:
    """A result on stdout, for programs."""
    _console("stdout").print(json.dumps(value, indent=2), markup=False, soft_wrap=True)


def print_error(message: str) -> None:
    """One line on stderr: what is wrong."""
    _say("error", "bold red", message)


def print_hint(message: str) -> None:
    """One line on stderr: what to do, after an error or a warning, or else next."""
    _say("hint", "bold cyan", message, shown=_talk.last_was_shown or not _talk.quiet)


def print_warning(message: str) -> None:
    """One line on stderr: what went through but deserves a look."""
    _say("warning", "bold yellow", message)


def print_note(message: str) -> None:
    """One line on stderr: what was chosen or left out on the user's behalf."""
    _say("note", "bold", message, shown=not _talk.quiet)


def print_status(message: str) -> None:
    """One line on stderr: what is being done or was done."""
    _say("", "", message, shown=not _talk.quiet)


def print_log(message: str) -> None:
    """One line on stderr of what another program says."""
    _say("", "dim", message, shown=not _talk.quiet)


def _say(kind: str, style: str, message: str, *, shown: bool = True) -> None:
    _log(f"{kind}: {message}" if kind else message)
    _talk.last_was_shown = shown
    if not shown:
        return
    from rich.text import Text

    line = Text(f"{kind}:", style).append(f" {message}", "default not bold") if kind else Text(message, style)
    if _talk.verbose:
        line = Text(f"{time.monotonic() - _talk.started:6.1f} s  ", "dim").append_text(line)
    _console("stderr").print(line, soft_wrap=True)


def _log(line: str) -> None:
    if _talk.log is not None:
        try:
            print(time.strftime("%Y-%m-%d %H:%M:%S"), line, file=_talk.log, flush=True)
        except OSError:  # a full disk; the work itself may well go on
            _talk.log = None
            print_warning("the log file cannot be written any more")
