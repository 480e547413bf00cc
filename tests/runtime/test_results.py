from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sad_runtime.errors import ErrorCode, MissingExtraError, UserError
from sad_runtime.prediction import Prediction
from sad_runtime.result_format import ResultFormat
from sad_runtime.results import (
    Columns,
    EarlierRunError,
    Failure,
    PlainPass,
    Ranked,
    Row,
    RunRecord,
    SaliencyStatistics,
    Summary,
    open_output,
    rank,
)
from sad_runtime.results.answers import rows_of
from sad_runtime.results.tables import write_table

COLUMNS = Columns(ranked=2)
RECORD = RunRecord("bundle", {"top-k": 2}, ("photos",), ("cpu",))
FULL = Row(
    "a.gif",
    (Ranked(2, "duck 🦆", 0.75), Ranked(0, "cat", 0.25)),
    size=123,
    mtime_ns=1_700_000_000_123_456_789,
    plain=PlainPass(0, "cat"),
    saliency="overlays/a.gif.png",
    statistics=SaliencyStatistics(0.5, 2.0, 1.5),
    frames=7,
    logits=(0.5, -1.25, 1.5),
)


def row(name: str) -> Row:
    return Row(name, (Ranked(2, "duck 🦆", 0.75), Ranked(0, "cat", 0.25)), size=1, mtime_ns=2)


def failed(name: str) -> Row:
    error = Failure(ErrorCode.TRUNCATED, "the file ends before the image does")
    return Row(name, error=error, size=1, mtime_ns=2)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Rows


def test_a_plain_row_holds_the_prediction_and_the_ranking() -> None:
    assert json.loads(Row("a.png", row("").ranking).to_json()) == {
        "path": "a.png",
        "label": 2,
        "class": "duck 🦆",
        "probability": 0.75,
        "top_k": [
            {"label": 2, "class": "duck 🦆", "probability": 0.75},
            {"label": 0, "class": "cat", "probability": 0.25},
        ],
    }


def test_a_full_row_holds_all_that_was_asked_for() -> None:
    values = json.loads(FULL.to_json())
    assert list(values) == [
        *("path", "size", "mtime_ns", "label", "class", "probability", "top_k", "plain_label", "plain_class"),
        *("saliency", "saliency_l1_mean", "saliency_l2", "saliency_max", "frames", "logits"),
    ]
    assert (values["size"], values["mtime_ns"], values["frames"]) == (123, 1_700_000_000_123_456_789, 7)
    assert (values["saliency_l1_mean"], values["saliency_l2"], values["saliency_max"]) == (0.5, 2.0, 1.5)
    assert values["logits"] == [0.5, -1.25, 1.5]


def test_a_failed_row_holds_only_error_and_stamp() -> None:
    assert json.loads(failed("a.png").to_json()) == {
        "path": "a.png",
        "size": 1,
        "mtime_ns": 2,
        "error": {"code": "truncated", "message": "the file ends before the image does"},
    }
    assert failed("a.png").label is failed("a.png").class_name is failed("a.png").probability is None


@pytest.mark.parametrize("written", [FULL, row("a.png"), failed("b.png"), Row("c", row("").ranking)])
def test_a_row_comes_back_from_its_line(written: Row) -> None:
    assert Row.from_json(written.to_json()) == written
    assert Row.from_json(written.to_json().encode() + b"\n") == written


@pytest.mark.parametrize(
    "line",
    [
        *(
            "",
            "{",
            "[]",
            "3",
            "null",
            '{"path": 3, "label": 1}',
            '{"path": "a"}',
            '{"path": "a", "error": "x"}',
        ),
        '{"path": "a", "label": "x", "class": "x", "probability": 1}',
        '{"path": "a", "error": {"code": "unheard-of", "message": ""}}',
        "[" * 100_000,
    ],
)
def test_what_is_not_a_row_is_a_value_error(line: str) -> None:
    with pytest.raises(ValueError, match="not a row"):
        Row.from_json(line)


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


def test_written_logits_are_the_float32_they_were() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 1000)).astype(np.float32)
    (done,) = rows_of([Row("a")], Prediction(logits), list(map(str, range(1000))), top_k=1, logits=True)
    np.testing.assert_array_equal(np.array(json.loads(done.to_json())["logits"], np.float32), logits[0])


def test_statistics_of_a_huge_saliency_are_finite() -> None:
    saliency = np.full((1, 3, 8, 8), 3e38, np.float32)
    prediction = Prediction(np.zeros((1, 2), np.float32), saliency)
    (done,) = rows_of([Row("a")], prediction, ["a", "b"], top_k=1, statistics=True)
    assert done.statistics is not None
    assert done.statistics.l2 == pytest.approx(3e38 * np.sqrt(192), rel=1e-6)


def test_classes_of_one_name_are_counted_apart() -> None:
    summary = Summary()
    summary.add([Row("a", (Ranked(0, "crane", 1.0),)), Row("b", (Ranked(1, "crane", 1.0),)), failed("c")])
    assert summary.classes == {(0, "crane"): 1, (1, "crane"): 1}
    assert summary.failures == {"truncated": 1}
    assert summary.examples == {"truncated": "c: the file ends before the image does"}


# Files


def test_rows_are_on_the_disk_before_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.jsonl"
    with open_output(str(out)) as output:
        output.begin(RECORD)
        output.write([row("a"), row("b")])
        assert output.kept_in == tmp_path / "deep" / "out.jsonl.partial"
        assert [line["path"] for line in lines(output.kept_in)] == ["a", "b"]
        assert not out.exists()
        output.write([row("c")])
        output.publish(COLUMNS)
    assert output.count == 3
    assert [line["path"] for line in lines(out)] == ["a", "b", "c"]
    assert names(out.parent) == ["out.jsonl", "out.jsonl.run.json"]
    assert RunRecord.read(out.with_name("out.jsonl.run.json")) == RECORD


def test_rows_and_the_journals_name_are_synced_before_the_rows_count(
    tmp_path: Path, synced: list[tuple[int, int]]
) -> None:
    with open_output(str(tmp_path / "out.jsonl")) as output:
        output.begin(RECORD)
        assert tmp_path.stat().st_ino in [inode for inode, _ in synced]
        assert output.kept_in is not None
        for i, batch in enumerate(([row("a"), row("b")], [row("c")], [failed("d")])):
            output.write(batch)
            journal = output.kept_in.stat()
            assert synced[-1] == (journal.st_ino, journal.st_size)
            assert output.count == (2, 3, 4)[i]


def test_a_table_is_synced_before_the_journal_goes(tmp_path: Path, synced: list[tuple[int, int]]) -> None:
    out = tmp_path / "out.csv"
    with open_output(str(out)) as output:
        output.begin(RECORD)
        output.write([row("a")])
        synced.clear()
        output.publish(COLUMNS)
    assert synced == [
        (out.stat().st_ino, out.stat().st_size),
        (tmp_path.stat().st_ino, tmp_path.stat().st_size),
    ]


def earlier_result(out: Path) -> Path:
    out.write_text("older\n")
    RECORD.write(out.with_name(out.name + ".run.json"))
    return out


def test_a_finished_result_is_replaced_only_when_asked(tmp_path: Path) -> None:
    out = earlier_result(tmp_path / "out.jsonl")
    with pytest.raises(EarlierRunError, match=r"out.jsonl holds the rows of a finished run") as error:
        open_output(str(out))
    assert "--resume" in str(error.value.hint)
    assert "--overwrite" in str(error.value.hint)
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.run.json"]
    with open_output(str(out), overwrite=True) as output:
        output.begin(RECORD)
        output.write([row("a")])
        output.publish(COLUMNS)
    assert [line["path"] for line in lines(out)] == ["a"]


def test_a_finished_table_cannot_be_resumed_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(EarlierRunError) as error:
        open_output(str(earlier_result(tmp_path / "out.csv")))
    assert "--resume" not in str(error.value.hint)


@pytest.mark.parametrize("how", [{}, {"overwrite": True}])
def test_a_file_that_is_no_result_is_never_replaced(tmp_path: Path, how: dict[str, bool]) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"pixels")
    with pytest.raises(UserError, match=r"photo.png is there already and was not written by infer"):
        open_output(str(photo), **how)
    assert photo.read_bytes() == b"pixels"
    assert names(tmp_path) == ["photo.png"]


def test_an_empty_file_is_no_loss(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").touch()
    with open_output(str(tmp_path / "out.jsonl")) as output:
        output.begin(RECORD)
        output.write([row("a")])
        output.publish(COLUMNS)
    assert [line["path"] for line in lines(tmp_path / "out.jsonl")] == ["a"]


def test_a_run_cut_short_keeps_its_rows_and_the_older_file(tmp_path: Path) -> None:
    out = earlier_result(tmp_path / "out.jsonl")
    with pytest.raises(KeyboardInterrupt), open_output(str(out), overwrite=True) as output:
        output.begin(RECORD)
        output.write([row("a")])
        raise KeyboardInterrupt
    assert out.read_text() == "older\n"
    assert [line["path"] for line in lines(tmp_path / "out.jsonl.partial")] == ["a"]


def test_nothing_finished_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_output(str(tmp_path / "out.jsonl")) as output:
        output.begin(RECORD)
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_an_unfinished_runs_rows_are_thrown_away_only_when_asked(tmp_path: Path) -> None:
    out = str(tmp_path / "out.jsonl")
    with open_output(out) as output:
        output.begin(RECORD)
        output.write([row("a")])
    with pytest.raises(EarlierRunError, match=r"out.jsonl.partial holds the rows of an unfinished run"):
        open_output(out)
    assert len(lines(tmp_path / "out.jsonl.partial")) == 1
    with open_output(out, overwrite=True) as output:
        output.begin(RECORD)
        output.write([row("b")])
        output.publish(COLUMNS)
    assert [line["path"] for line in lines(tmp_path / "out.jsonl")] == ["b"]


def test_two_runs_into_one_file_are_refused_as_long_as_both_live(tmp_path: Path) -> None:
    out = str(tmp_path / "out.jsonl")
    code = (
        "import sys\nfrom sad_runtime.results import open_output\n"
        "output = open_output(sys.argv[1])\nprint('open', flush=True)\nsys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    for how in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match="another run is writing"):
            open_output(out, **how)
    process.kill()
    process.communicate()
    with open_output(out) as output:
        output.begin(RECORD)


def test_output_that_is_a_folder_or_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "out.jsonl"):
        with pytest.raises(UserError):
            open_output(str(path))


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.jsonl").symlink_to("elsewhere/real.jsonl")
    with open_output(str(tmp_path / "out.jsonl")) as output:
        output.begin(RECORD)
        output.write([row("a")])
        output.publish(COLUMNS)
    assert (tmp_path / "out.jsonl").is_symlink()
    assert len(lines(tmp_path / "elsewhere" / "real.jsonl")) == 1


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    with open_output(str(link)) as output:
        output.write([row("a")])
        output.publish(COLUMNS)
    assert Path("/dev/null").is_char_device()
    assert names(tmp_path) == ["null"]


@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}, {"table": ResultFormat.CSV}])
def test_what_needs_a_file_is_refused_for_standard_output(how: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="needs a file, but --out is -"):
        open_output("-", **how)


def test_a_full_device_is_one_line(tmp_path: Path) -> None:
    link = tmp_path / "full"
    link.symlink_to("/dev/full")
    with (
        pytest.raises(UserError, match="No space left on device; the first 0 rows"),
        open_output(str(link)) as output,
    ):
        output.write([row("a")])


@contextlib.contextmanager
def files_of_at_most(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes, as on a disk that is full.

    Lifted before the test ends: the test runner may write to a file, too.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_leaves_whole_rows(tmp_path: Path) -> None:
    with open_output(str(tmp_path / "out.jsonl")) as output:
        output.begin(RECORD)
        output.write([row("a")] * 2)
        with (
            files_of_at_most(4096),
            pytest.raises(UserError, match=r"cannot write to .*; 2 rows of this run are written"),
        ):
            output.write([row("b")] * 100)
    assert [line["path"] for line in lines(tmp_path / "out.jsonl.partial")] == ["a", "a"]


@pytest.mark.parametrize("table", [ResultFormat.CSV, ResultFormat.PARQUET])
def test_a_disk_full_while_the_table_is_written_keeps_the_rows(tmp_path: Path, table: ResultFormat) -> None:
    if table is ResultFormat.PARQUET:
        pytest.importorskip("pyarrow")
    out = earlier_result(tmp_path / f"out.{table}")
    rows = [row(f"{os.urandom(48).hex()}.png") for _ in range(10)]
    with open_output(str(out), overwrite=True) as output:
        output.begin(RECORD)
        output.write(rows)
        with files_of_at_most(512), pytest.raises(UserError, match=f"cannot write .*out.{table}"):
            output.publish(COLUMNS)
    assert out.read_text() == "older\n"
    assert len(lines(tmp_path / f"out.{table}.partial")) == 10
    kept = ["", ".partial", ".partial.run.json", ".run.json"]
    assert names(tmp_path) == [f"out.{table}{ending}" for ending in kept]


def test_dash_is_standard_output() -> None:
    code = (
        "from sad_runtime.results import open_output, Row, Ranked\n"
        "with open_output('-') as output: output.write([Row('a', (Ranked(0, 'x', 1.0),))])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout)["path"] == "a"


# Tables


def journal_of(folder: Path, *rows: Row) -> Path:
    path = folder / "journal"
    path.write_text("".join(row.to_json() + "\n" for row in rows), encoding="utf-8")
    return path


ALL = Columns(ranked=3, plain=True, overlays=True, statistics=True, logits=3)


def test_the_ending_says_the_format_unless_it_is_given(tmp_path: Path) -> None:
    for name, expected in (
        ("a.csv", "csv"),
        ("a.PARQUET", "parquet"),
        ("a.txt", "jsonl"),
        ("jsonl", "jsonl"),
    ):
        assert ResultFormat.of(name) == expected
    with open_output(str(tmp_path / "a.txt"), table=ResultFormat.CSV) as output:
        output.begin(RECORD)
        output.write([row("a")])
        output.publish(COLUMNS)
    assert (tmp_path / "a.txt").read_text().startswith("path,label,class,probability,label_2,")
    assert names(tmp_path) == ["a.txt", "a.txt.run.json"]


def test_csv_spreads_the_ranking_and_the_logits(tmp_path: Path) -> None:
    write_table(journal_of(tmp_path, FULL, failed("b"), row("c")), ResultFormat.CSV, ALL, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        full, bad, still = csv.DictReader(file)
    assert full == {
        "path": "a.gif",
        "label": "2",
        "class": "duck 🦆",
        "probability": "0.75",
        "plain_label": "0",
        "plain_class": "cat",
        "label_2": "0",
        "class_2": "cat",
        "probability_2": "0.25",
        "label_3": "",
        "class_3": "",
        "probability_3": "",
        "saliency": "overlays/a.gif.png",
        "saliency_l1_mean": "0.5",
        "saliency_l2": "2.0",
        "saliency_max": "1.5",
        "frames": "7",
        "error_code": "",
        "error_message": "",
        "size": "123",
        "mtime_ns": "1700000000123456789",
        "logit_0": "0.5",
        "logit_1": "-1.25",
        "logit_2": "1.5",
    }
    assert (bad["path"], bad["error_code"], bad["label"], bad["frames"]) == ("b", "truncated", "", "")
    assert (still["path"], still["frames"]) == ("c", "1")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_csv_cells_are_no_formulas(tmp_path: Path, start: str) -> None:
    evil = f"{start}cmd|'/c calc'!A1"
    hostile = Row(evil, (Ranked(0, evil, 1.0),), saliency=evil)
    write_table(journal_of(tmp_path, hostile), ResultFormat.CSV, ALL, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        (read,) = csv.DictReader(file)
    assert [read["path"], read["class"], read["saliency"]] == ["'" + evil] * 3


def test_names_that_are_no_utf8_or_hold_a_line_break_survive_csv(tmp_path: Path) -> None:
    rows = [row(os.fsdecode(b"\xff.png")), row('a "b",\nc')]
    write_table(journal_of(tmp_path, *rows), ResultFormat.CSV, COLUMNS, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        assert [read["path"] for read in csv.DictReader(file)] == ["\\udcff.png", 'a "b",\nc']


def test_parquet_keeps_types_lists_and_missing_values(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [FULL, failed("b"), row(os.fsdecode(b"\xff.png"))]
    write_table(journal_of(tmp_path, *rows), ResultFormat.PARQUET, ALL, tmp_path / "t.parquet")
    full, bad, odd = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    expected = json.loads(FULL.to_json())
    assert {name: full[name] for name in expected} == expected
    assert (full["error_code"], bad["error_code"], bad["label"], bad["top_k"]) == (
        None,
        "truncated",
        None,
        None,
    )
    assert odd["path"] == "\\udcff.png"


def test_parquet_is_written_in_groups(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    journal = journal_of(tmp_path, *[row("a")] * 25_000)
    write_table(journal, ResultFormat.PARQUET, COLUMNS, tmp_path / "t.parquet")
    file = parquet.ParquetFile(tmp_path / "t.parquet")
    assert (file.metadata.num_rows, file.num_row_groups) == (25_000, 3)


def test_parquet_without_its_package_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=re.escape("pyarrow")) as caught:
        open_output(str(tmp_path / "out.parquet"))
    assert caught.value.hint == 'pip install "sad-deploy[parquet]"'
    assert names(tmp_path) == []
