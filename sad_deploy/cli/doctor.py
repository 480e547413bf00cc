"""``sad-deploy doctor``: what is installed here, and what of it works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sad_runtime.version import __version__

from .console import print_error, print_hint, print_json, print_result
from .options import AsJson

if TYPE_CHECKING:
    from ..doctor import Finding

_EXIT_MISSING = 2


def doctor(
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="End with exit code 2 if this does not work: rtx, tensorrt, gpu, cuda, torch or another; "
            "may be repeated.",
            show_default=False,
            rich_help_panel="Checks",
        ),
    ] = None,
    thorough: Annotated[
        bool,
        typer.Option(
            "--thorough",
            help="Import every package too, which takes seconds.",
            rich_help_panel="Checks",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show versions, extras, the providers that really load, the GPU, and TensorRT."""
    from ..doctor import examine, missing

    findings = examine(thorough=thorough)
    lacking = missing(findings, require or [])
    if as_json:
        print_json([finding.as_dict() for finding in findings])
    else:
        _print(findings)
    for finding in lacking:
        print_error(f"{finding.what} is required: {finding.state}")
        if finding.remedy:
            print_hint(finding.remedy)
    if lacking:
        raise typer.Exit(_EXIT_MISSING)


def _print(findings: list[Finding]) -> None:
    """A line each, and a second one with the command that helps; nothing is cut, so that it can be copied."""
    width = max(len(finding.what) for finding in findings)
    print_result(f"sad-deploy {__version__}")
    for finding in findings:
        print_result(f"{'✓' if finding.works else '–'} {finding.what:<{width}}  {finding.state}")
        if finding.remedy:
            print_result(f"{'':{width + 4}}{finding.remedy}")
