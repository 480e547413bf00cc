"""The command line: one file a command, each thin: parse, call, print.

Importing it loads neither torch, onnx nor onnxruntime; a command imports what it needs when it runs.
Results go to stdout, progress and messages to stderr. Exit codes: 0 all good; 1 internal error;
2 wrong use, unusable input, or nowhere to write: no result; 3 finished, some images failed; 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Any

import typer

from sad_runtime.errors import UserError
from sad_runtime.version import __version__

from .benchmark import benchmark
from .calibrate import calibrate
from .console import EXIT_INTERRUPTED, print_error, print_hint
from .doctor import doctor
from .export import export
from .gradient import gradient
from .infer import infer
from .inspect import inspect

EXIT_INTERNAL_ERROR = 1
EXIT_UNUSABLE_INPUT = 2

# The base of all usage errors. Newer versions of typer carry their own copy of click, so it must be found
# through typer.
_CommandLineError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.ENOTDIR}

app = typer.Typer(
    name="sad-deploy",
    help="Deploy image classifiers with Saliency Adversarial Defense: calibrate, export, infer.",
    no_args_is_help=True,
    add_completion=False,
    # A bug shows its plain traceback; the user's errors are one line (see main).
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (calibrate, export, infer, benchmark, inspect, gradient, doctor):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sad-deploy {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Deploy image classifiers with Saliency Adversarial Defense: calibrate, export, infer."""


def main() -> None:
    """Entry point of ``sad-deploy``: runs a command and turns what was raised into an exit code."""
    # Read when torch is imported. Threads that spin while they wait make calibration take six times as long
    # on a machine that others use too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        print_error(error.message)
        if error.hint:
            print_hint(error.hint)
        sys.exit(EXIT_UNUSABLE_INPUT)
    except _CommandLineError as error:
        error.show()
        sys.exit(EXIT_UNUSABLE_INPUT)
    except OSError as error:
        # The file system's refusals are the user's to mend; anything else is a bug.
        if error.errno not in _REFUSALS or error.filename is None:
            raise
        print_error(f"{error.filename}: {error.strerror}")
        sys.exit(EXIT_UNUSABLE_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        print_error("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)
