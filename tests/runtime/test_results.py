from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sad_runtime.errors import ErrorCode, UserError
from sad_runtime.results import Failure, Journal, Ranked, Row, rank


def row(name: str) -> Row:
    return Row(name, (Ranked(2, "duck 🦆", 0.75), Ranked(0, "cat", 0.25)))


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_row_holds_the_prediction_and_the_ranking() -> None:
    assert json.loads(row("a.png").to_json()) == {
        "path": "a.png",
        "label": 2,
        "class": "duck 🦆",
        "probability": 0.75,
        "top_k": [
            {"label": 2, "class": "duck 🦆", "probability": 0.75},
            {"label": 0, "class": "cat", "probability": 0.25},
        ],
    }


def test_failed_row_holds_only_the_error() -> None:
    failed = Row("a.png", error=Failure(ErrorCode.TRUNCATED, "the file ends before the image does"))
    assert json.loads(failed.to_json()) == {
        "path": "a.png",
        "error": {"code": "truncated", "message": "the file ends before the image does"},
    }


@pytest.mark.parametrize(
    "name", [b"caf\xc3\xa9.png", b"\xff\xfe.png", b"line\nbreak\t\"'.png", b"\xf0\x9f\xa6\x86"]
)
def test_any_file_name_is_one_line_of_utf8_and_comes_back(name: bytes) -> None:
    text = row(os.fsdecode(name)).to_json()
    assert len(text.splitlines()) == 1
    assert os.fsencode(json.loads(text.encode())["path"]) == name


def test_ranking_is_by_logit_and_the_first_of_equal_ones_comes_first() -> None:
    logits = np.array([[1, 3, 3, 2], [0, 0, 0, 0]], np.float32)
    rankings = rank(logits, ["a", "b", "c", "d"], 3)
    assert [[item.label for item in ranking or ()] for ranking in rankings] == [[1, 2, 3], [0, 1, 2]]
    assert rankings[0] is not None
    assert rankings[0][0].probability == pytest.approx(
        np.exp(3) / (np.exp(1) + 2 * np.exp(3) + np.exp(2)), rel=1e-12
    )
    assert rankings[0][0].class_name == "b"


def test_more_classes_than_there_are_gives_all() -> None:
    (ranking,) = rank(np.array([[0, 1]], np.float32), ["a", "b"], 100)
    assert ranking is not None
    assert len(ranking) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_have_no_ranking(bad: float) -> None:
    rankings = rank(np.array([[0, bad], [1, 0]], np.float32), ["a", "b"], 2)
    assert rankings[0] is None
    assert rankings[1] is not None


def test_rows_are_on_the_disk_before_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.jsonl"
    with Journal(out) as journal:
        journal.write([row("a"), row("b")])
        assert journal.writing_to == tmp_path / "deep" / "out.jsonl.partial"
        assert [line["path"] for line in lines(journal.writing_to)] == ["a", "b"]
        assert not out.exists()
        journal.write([row("c")])
    assert journal.count == 3
    assert [line["path"] for line in lines(out)] == ["a", "b", "c"]
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


def test_interruption_keeps_finished_rows_and_the_older_file(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("older\n")
    with pytest.raises(KeyboardInterrupt), Journal(out) as journal:
        journal.write([row("a")])
        raise KeyboardInterrupt
    assert out.read_text() == "older\n"
    assert [line["path"] for line in lines(tmp_path / "out.jsonl.partial")] == ["a"]


def test_interruption_within_a_row_keeps_the_whole_ones(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt), Journal(out) as journal:
        journal.write([row("a"), row("b")])
        with (tmp_path / "out.jsonl.partial").open("a") as file:
            file.write('{"path": "c", "lab')
        raise KeyboardInterrupt
    assert journal.count == 2
    assert [line["path"] for line in lines(tmp_path / "out.jsonl.partial")] == ["a", "b"]


def test_nothing_finished_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Journal(tmp_path / "out.jsonl"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_output_that_is_a_folder_or_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "out.jsonl"):
        with pytest.raises(UserError):
            Journal(path)


def test_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    with Journal(link) as journal:
        journal.write([row("a")])
    assert Path("/dev/null").is_char_device()
    assert [path.name for path in tmp_path.iterdir()] == ["null"]


def test_full_device_is_one_line(tmp_path: Path) -> None:
    link = tmp_path / "full"
    link.symlink_to("/dev/full")
    with (
        pytest.raises(UserError, match="No space left on device; the first 0 rows"),
        Journal(link) as journal,
    ):
        journal.write([row("a")])


def test_dash_is_standard_output() -> None:
    code = (
        "from sad_runtime.results import Journal, Row, Ranked\n"
        "with Journal('-') as journal: journal.write([Row('a', (Ranked(0, 'x', 1.0),))])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout)["path"] == "a"
