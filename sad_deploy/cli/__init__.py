"""The command line: one file a command, each thin: parse, call, print.

Importing it loads neither torch, onnx nor onnxruntime; a command is imported when it runs.
Results go to stdout, progress and messages to stderr. Exit codes: 0 all good; 1 internal error;
2 wrong use, unusable input, or nowhere to write: no result; 3 finished, some images failed; 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sad_runtime.errors import UserError
from sad_runtime.version import __version__

from .commands import HELP_OPTIONS, Commands
from .console import (
    EXIT_INTERRUPTED,
    flush_streams,
    is_verbose,
    prepare_streams,
    print_error,
    print_hint,
    talk,
)

EXIT_INTERNAL_ERROR = 1
EXIT_UNUSABLE_INPUT = 2

# The base of all usage errors. Newer versions of typer carry their own copy of click, so it must be found
# through typer.
_CommandLineError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.ENOTDIR}
_FULL = {errno.ENOSPC, errno.EDQUOT}

app = typer.Typer(
    name="sad-deploy",
    cls=Commands,
    no_args_is_help=True,
    # A bug shows its plain traceback; the user's errors are one line (see main).
    pretty_exceptions_enable=False,
    context_settings=HELP_OPTIONS,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sad-deploy {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results, warnings and errors only.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Print times, TensorRT's log, and where an error came from."),
    ] = False,
    log_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Add all messages to this file, with the time.")
    ] = None,
) -> None:
    """Deploy image classifiers with Saliency Adversarial Defense: calibrate, export, infer."""
    if quiet and verbose:
        raise UserError("--quiet and --verbose contradict each other: choose one")
    talk(quiet=quiet, verbose=verbose, log_file=log_file)


def main() -> None:
    """Entry point of ``sad-deploy``: runs a command and turns what was raised into an exit code."""
    # Read when torch is imported. Threads that spin while they wait make calibration take six times as long
    # on a machine that others use too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    prepare_streams()
    try:
        code = _run()
        flush_streams()
    except OSError as error:
        # The file system's refusals are the user's to mend; anything else is a bug.
        if error.errno not in (_REFUSALS if error.filename is not None else _FULL):
            raise
        print_error(f"{error.filename or 'the output'}: {error.strerror}")
        code = EXIT_UNUSABLE_INPUT
    flush_streams()
    sys.exit(code)


def _run() -> int:
    """Run the command line; its exit code.

    Raises:
        Exception: A bug.
    """
    try:
        code = app(prog_name="sad-deploy", standalone_mode=False)
    except UserError as error:
        print_error(error.message)
        if error.hint:
            print_hint(error.hint)
        _print_origin()
        return EXIT_UNUSABLE_INPUT
    except _CommandLineError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return EXIT_UNUSABLE_INPUT
        from .usage import explained

        message, hint = explained(error)
        print_error(message)
        print_hint(hint)
        return EXIT_UNUSABLE_INPUT
    except (KeyboardInterrupt, typer.Abort):
        print_error("interrupted")
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else 0


def _print_origin() -> None:
    """With ``--verbose``, the traceback of the error that is being handled."""
    if is_verbose():
        import traceback

        print_hint(traceback.format_exc().strip())
