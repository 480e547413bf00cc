"""Call the command line inside the test's own process."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from sad_deploy.cli import app, main


def run_command(*arguments: str) -> str:
    """stdout of a command; what it raises is raised."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False, standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.stdout


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Of the whole command line, which catches and prints errors; output goes where it does in use."""
    monkeypatch.setattr(sys, "argv", ["sad-deploy", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code
