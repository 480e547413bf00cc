"""``--help``, and what is the same for every command."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sad_deploy.cli.commands import COMMANDS, load
from tests.support.tiny_bundle import linear_model, write_tiny_bundle

ENTRY = [sys.executable, "-m", "sad_deploy"]


def sad_deploy(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ENTRY, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "80", **environment},
    )


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help_is_readable_at_80_columns(name: str | None) -> None:
    run = sad_deploy(*([name] if name else []), "--help")
    assert run.returncode == 0
    assert [line for line in run.stdout.splitlines() if len(line) > 80] == []
    assert "…" not in re.sub(r"fp32-fp16, …", "", run.stdout)  # nothing is cut
    assert not re.search(r"<\w+( range)?>|list\[|x>=|\[\w+\|", run.stdout)  # none of typer's own words


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_panels_and_two_examples_that_it_would_read(name: str) -> None:
    command = load(name)
    for example in COMMANDS[name].examples:
        program, called, *arguments = example.split()
        assert (program, called) == ("sad-deploy", name)
        command.make_context(name, arguments)
    assert COMMANDS[name].summary == " ".join(inspect.cleandoc(command.help).split("\n\n")[0].split())


def test_help_of_all_imports_no_command_and_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['sad-deploy', '--help']\n"
        "from sad_deploy.cli import main\n"
        "try: main()\n"
        "except SystemExit: print([m for m in sys.modules if m in ('rich', 'numpy', 'torch', 'onnx')"
        " or m == 'sad_deploy.cli.infer'], file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == "[]\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_console_without_unicode_gets_ascii(tmp_path: Path, encoding: str) -> None:
    write_tiny_bundle(tmp_path / "sad-model", linear_model())
    for arguments in (["gradient", "--help"], ["inspect"], ["infer", "x→y"]):
        run = subprocess.run(
            [*ENTRY, *arguments],
            capture_output=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        )
        said = (run.stdout + run.stderr).decode(encoding)
        assert "Traceback" not in said
        if arguments == ["inspect"]:
            assert re.search(r"\beta\b", said)
    assert "x->y" in said


@pytest.mark.parametrize("closed", ["2>&1 | true", "| true", ">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_output_ends_no_work(tmp_path: Path, closed: str) -> None:
    """``| true`` never reads: whatever is written finds the pipe broken."""
    from onnx import save

    from tests.support.models import forward_onnx, small_cnn

    save(forward_onnx(small_cnn()), str(tmp_path / "f.onnx"))
    words = f"{sys.executable} -m sad_deploy defend f.onnx --eta 0.05"
    run = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"( sleep 0.3; {words} ) {closed}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "f.sad.onnx").is_file()
    assert "Error" not in run.stderr


def test_quiet_leaves_results_and_errors_and_the_log_file_has_all(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "sad-model", linear_model())
    run = sad_deploy("-q", "--log-file", "log.txt", "infer", "absent", cwd=tmp_path)
    assert run.returncode == 2
    assert [line.split(":")[0] for line in run.stderr.splitlines()] == ["error"] or "hint" in run.stderr
    assert "error: " in (tmp_path / "log.txt").read_text()
    quiet = sad_deploy("-q", "--log-file", "log.txt", "infer", "sad-model/manifest.json", cwd=tmp_path)
    assert quiet.returncode == 3
    assert "backend" not in quiet.stderr
    assert "backend cpu" in (tmp_path / "log.txt").read_text()
    assert sad_deploy("-q", "-v", "inspect", cwd=tmp_path).returncode == 2


def test_verbose_shows_where_an_error_came_from(tmp_path: Path) -> None:
    assert "Traceback" not in sad_deploy("inspect", cwd=tmp_path).stderr
    assert "Traceback" in sad_deploy("-v", "inspect", cwd=tmp_path).stderr


def test_shells_are_given_a_completion_of_commands(tmp_path: Path) -> None:
    run = sad_deploy(_SAD_DEPLOY_COMPLETE="complete_bash", COMP_WORDS="sad-deploy de", COMP_CWORD="1")
    assert "defend" in run.stdout
    run = sad_deploy(
        _SAD_DEPLOY_COMPLETE="complete_bash", COMP_WORDS="sad-deploy defend --conv", COMP_CWORD="2"
    )
    assert "--conv-gradient" in run.stdout


def test_names_with_colons_are_no_emoji(tmp_path: Path) -> None:
    run = sad_deploy("gradient", ":x:.onnx", cwd=tmp_path)
    assert "no ONNX file :x:.onnx" in run.stderr


@pytest.mark.parametrize("place", ["folder", "folder/file/log.txt", "socket"])
def test_a_log_file_that_cannot_be_written_is_one_line(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server, contextlib.chdir(tmp_path):
        server.bind("socket")
    run = sad_deploy("--log-file", place, "doctor", cwd=tmp_path)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: cannot write {place}: ")
    assert "hint: choose another --log-file" in run.stderr


def test_a_log_files_folder_is_made(tmp_path: Path) -> None:
    sad_deploy("--log-file", "new/log.txt", "infer", "absent", cwd=tmp_path)
    assert "error:" in (tmp_path / "new" / "log.txt").read_text(encoding="utf-8")
