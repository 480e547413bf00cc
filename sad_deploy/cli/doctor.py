"""``sad-deploy doctor``: what is installed here, and what of it really works."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from sad_runtime.version import __version__

from .console import stdout

if TYPE_CHECKING:
    from ..doctor import Finding


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show versions, extras, the providers that really load, the GPU, and TensorRT."""
    from ..doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
        return
    _print(findings)


def _print(findings: list[Finding]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"sad-deploy {__version__}", title_justify="left")
    for column in ("", "what", "state", "to have it"):
        table.add_column(column)
    for finding in findings:
        mark = "[green]✓[/]" if finding.works else "[yellow]–[/]"
        table.add_row(mark, *map(escape, (finding.what, finding.state, finding.remedy or "")))
    stdout.print(table)
