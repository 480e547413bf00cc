"""Going on with a run: which images are skipped, and what the files are whenever the power fails."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sad_runtime.errors import ErrorCode, UserError
from sad_runtime.results import (
    Columns,
    EarlierRunError,
    Failure,
    FinishedRows,
    Ranked,
    Row,
    RunRecord,
    open_output,
)
from sad_runtime.results.finished import compact
from sad_runtime.results.row import match_head, parse_head
from sad_runtime.sources import Item, MemberItem, Stamp

COLUMNS = Columns(ranked=1)
RECORD = RunRecord("bundle", {"top-k": 1, "logits": False, "shard": None}, ("photos",), ("cpu",), ("1.0",))


SAME = Stamp(10, 20)


def image(name: str, stamp: Stamp | None = SAME) -> Item:
    return MemberItem(name, lambda: b"", stamp)


def row(name: str, *, size: int = 10, label: int = 0) -> Row:
    return Row(name, (Ranked(label, "x", 1.0),), size=size, mtime_ns=20)


def failed(name: str, *, size: int | None = 10) -> Row:
    error = Failure(ErrorCode.CORRUPT, "cannot be decoded")
    return Row(name, error=error, size=size, mtime_ns=None if size is None else 20)


def journal_of(folder: Path, *rows: Row, tail: bytes = b"") -> Path:
    path = folder / "journal"
    path.write_bytes("".join(row.to_json() + "\n" for row in rows).encode() + tail)
    return path


def missing(finished: FinishedRows, *images: Item, retry_errors: bool = False) -> list[str]:
    return [item.name for item in finished.remaining(images, retry_errors=retry_errors)]


def paths(path: Path) -> list[str]:
    return [json.loads(line)["path"] for line in path.read_text(encoding="utf-8").splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def unfinished(out: Path, *rows: Row, record: RunRecord = RECORD, overwrite: bool = False) -> None:
    with open_output(str(out), overwrite=overwrite) as output:
        output.begin(record)
        output.write(rows)


def finish(out: Path, *rows: Row, resume: bool = False, record: RunRecord = RECORD) -> None:
    with open_output(str(out), resume=resume) as output:
        output.begin(record)
        if rows:
            output.write(rows)
        output.complete()
        output.publish(COLUMNS)


def with_option(name: str, value: object) -> RunRecord:
    return dataclasses.replace(RECORD, options={**RECORD.options, name: value})


# Which images are skipped

HOSTILE = [
    "plain.png",
    'quote", "size": 1, "mtime_ns": 2, "label": .png',
    "back\\slash\\",
    "new\nline",
    "é 🦆 \u2028",
    os.fsdecode(b"\xff\xfe"),
    "",
]


def test_images_with_a_row_are_skipped_whatever_their_names(tmp_path: Path) -> None:
    finished = FinishedRows(journal_of(tmp_path, *map(row, HOSTILE)))
    assert finished.count == len(HOSTILE)
    assert missing(finished, *map(image, [*HOSTILE, "another.png"])) == ["another.png"]
    assert (finished.skipped, finished.skipped_failures, finished.replaced) == (len(HOSTILE), 0, 0)
    assert not finished.superseded


@settings(deadline=None)  # a busy machine
@given(st.text(st.characters(exclude_categories=[])), st.sampled_from([row, failed]))
def test_a_line_says_the_same_read_in_part_and_as_a_whole(name: str, make: Callable[[str], Row]) -> None:
    written = make(name)
    line = (written.to_json() + "\n").encode()
    assert match_head(line) == parse_head(line)
    assert Row.from_json(line) == written


def test_rows_that_another_tool_wrote_differently_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    rows = [json.loads(row(name).to_json()) for name in HOSTILE]
    text = [json.dumps(dict(sorted(values.items())), separators=(",", ":")) + "\n" for values in rows]
    path.write_text("".join(text))
    assert missing(FinishedRows(path), *map(image, HOSTILE)) == []


@pytest.mark.parametrize("stamp", [Stamp(11, 20), Stamp(10, 21), None])
def test_a_changed_file_is_classified_anew(tmp_path: Path, stamp: Stamp | None) -> None:
    finished = FinishedRows(journal_of(tmp_path, row("a"), row("b")))
    assert missing(finished, image("a"), image("b", stamp)) == ["b"]
    assert finished.replaced == 1
    assert finished.superseded


def test_the_last_row_of_a_path_counts(tmp_path: Path) -> None:
    finished = FinishedRows(journal_of(tmp_path, row("a", size=9), row("b"), row("a")))
    assert missing(finished, image("a"), image("b")) == []
    assert finished.superseded


def test_failed_images_are_skipped_unless_they_are_to_be_tried_again(tmp_path: Path) -> None:
    path = journal_of(tmp_path, failed("a"), row("b"))
    finished = FinishedRows(path)
    assert missing(finished, image("a"), image("b")) == []
    assert finished.skipped_failures == 1
    assert missing(FinishedRows(path), image("a"), image("b"), retry_errors=True) == ["a"]


def test_what_was_not_there_is_always_looked_for_again(tmp_path: Path) -> None:
    path = journal_of(tmp_path, failed("a", size=None))
    assert missing(FinishedRows(path), image("a", None)) == ["a"]
    assert missing(FinishedRows(path), image("a")) == ["a"]


# What the journal may look like


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_no_row(tmp_path: Path, cut: int) -> None:
    whole = (row("b").to_json() + "\n").encode()
    finished = FinishedRows(journal_of(tmp_path, row("a"), tail=whole[:-cut]))
    assert finished.count == 1
    assert finished.end == len(row("a").to_json()) + 1
    assert missing(finished, image("a"), image("b")) == ["b"]


@pytest.mark.parametrize(
    "tail",
    [
        b"\0" * 5000,
        b"\0" * 50 + b"\n" + b"\0" * 9,
        b'{"path": "x"}\n',
        b"[1]\n",
        b'{"path": "x", "size": 1, "mtime_ns": 2, "label": \0\0\0\0}\n',  # a block between two that arrived
    ],
)
def test_damage_at_the_end_is_no_row(tmp_path: Path, tail: bytes) -> None:
    finished = FinishedRows(journal_of(tmp_path, row("a"), row("b"), tail=tail))
    assert finished.count == 2
    assert finished.end == 2 * (len(row("a").to_json()) + 1)


def test_damage_between_rows_is_refused_with_its_line(tmp_path: Path) -> None:
    tail = b"oops\n" + (row("b").to_json() + "\n").encode()
    with pytest.raises(UserError, match=r"line 2 of .*journal is not a row"):
        FinishedRows(journal_of(tmp_path, row("a"), tail=tail))


def test_an_empty_journal_has_no_rows(tmp_path: Path) -> None:
    assert missing(FinishedRows(journal_of(tmp_path)), image("a")) == ["a"]


def test_compacting_keeps_the_last_row_of_every_path_in_order(tmp_path: Path) -> None:
    rows = [row("a", label=1), row("b"), failed("c"), row("a", label=2), row("d"), row("c")]
    compact(journal_of(tmp_path, *rows), tmp_path / "compact")
    assert paths(tmp_path / "compact") == ["b", "a", "d", "c"]
    assert '"label": 2' in (tmp_path / "compact").read_text()


# The files of a run


def test_an_unfinished_run_is_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    unfinished(out, row("a"), row("b"))
    with (tmp_path / "out.jsonl.partial").open("ab") as file:
        file.write(b'{"path": "c", "si')
    finish(out, row("c"), resume=True)
    assert paths(out) == ["a", "b", "c"]
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.run.json"]


def test_a_finished_run_is_added_to_and_a_changed_file_has_one_row(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    finish(out, row("a"), row("b"))
    with open_output(str(out), resume=True) as output:
        assert output.begin(RECORD) == []
        assert output.finished is not None
        images = [image("a", Stamp(11, 20)), image("b"), image("c")]
        output.write([row(item.name, size=11) for item in output.finished.remaining(images)])
        assert paths(out) == ["a", "b"]  # until the new one is whole
        output.complete()
        output.publish(COLUMNS)
    assert paths(out) == ["b", "a", "c"]


def test_going_on_where_there_is_nothing_begins(tmp_path: Path) -> None:
    finish(tmp_path / "out.jsonl", row("a"), resume=True)
    assert paths(tmp_path / "out.jsonl") == ["a"]


def test_going_on_twice_is_cut_short_and_still_has_every_image_once(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    finish(out, row("a"), row("b"))
    with open_output(str(out), resume=True) as output:
        output.begin(RECORD)
        output.write([row("a", size=11)])
    finish(out, row("c"), resume=True)
    assert paths(out) == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (dataclasses.replace(RECORD, bundle="other"), "another bundle (bundle…, now other…)"),
        (with_option("top-k", 3), "--top-k 1 (now --top-k 3)"),
        (
            with_option("logits", True),
            "no --logits (now --logits)",
        ),
        (
            with_option("shard", "1/2"),
            "no --shard (now --shard 1/2)",
        ),
    ],
)
@pytest.mark.parametrize("is_finished", [True, False])
def test_another_bundle_or_other_options_are_refused_by_name_and_nothing_changes(
    tmp_path: Path, record: RunRecord, message: str, is_finished: bool
) -> None:
    out = tmp_path / "out.jsonl"
    (finish if is_finished else unfinished)(out, row("a"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with open_output(str(out), resume=True) as output, pytest.raises(UserError) as caught:
        output.begin(record)
    assert message in caught.value.message
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_backend_or_version_is_noted_and_both_are_recorded(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    unfinished(out, row("a"))
    with open_output(str(out), resume=True) as output:
        notes = output.begin(dataclasses.replace(RECORD, backends=("cuda",), versions=("2.0",)))
        output.publish(COLUMNS)
    assert notes == [
        "earlier rows were made by backend cpu, now it is cuda",
        "earlier rows were made by version 1.0, now it is 2.0",
    ]
    record = RunRecord.read(tmp_path / "out.jsonl.run.json")
    assert record is not None
    assert (record.backends, record.versions) == (("cpu", "cuda"), ("1.0", "2.0"))


@pytest.mark.parametrize("is_finished", [True, False])
def test_rows_without_a_record_are_not_gone_on_with(tmp_path: Path, is_finished: bool) -> None:
    out = tmp_path / "out.jsonl"
    (finish if is_finished else unfinished)(out, row("a"))
    (record,) = tmp_path.glob("*.run.json")
    record.unlink()
    with pytest.raises(UserError, match="which says how its rows were made"):
        open_output(str(out), resume=True)
    assert len(names(tmp_path)) == 1


def test_a_damaged_record_is_one_line(tmp_path: Path) -> None:
    unfinished(tmp_path / "out.jsonl", row("a"))
    (tmp_path / "out.jsonl.partial.run.json").write_text('{"bundle": 3')
    with pytest.raises(UserError, match="is not the record of a run"):
        open_output(str(tmp_path / "out.jsonl"), resume=True)


def test_a_finished_table_is_not_added_to(tmp_path: Path) -> None:
    finish(tmp_path / "out.csv", row("a"))
    with pytest.raises(UserError, match="only JSON Lines can be added to"):
        open_output(str(tmp_path / "out.csv"), resume=True)


def test_an_unfinished_table_is_gone_on_with(tmp_path: Path) -> None:
    unfinished(tmp_path / "out.csv", row("a"))
    finish(tmp_path / "out.csv", row("b"), resume=True)
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["path", "a", "b"]
    assert names(tmp_path) == ["out.csv", "out.csv.run.json"]


def test_an_unfinished_run_is_gone_on_with_from_the_same_sources_only(tmp_path: Path) -> None:
    """Else it would count as finished without its other images."""
    out = tmp_path / "out.jsonl"
    unfinished(out, row("a"))
    with (
        open_output(str(out), resume=True) as output,
        pytest.raises(UserError, match=r"other sources \(photos; now more\)"),
    ):
        output.begin(dataclasses.replace(RECORD, sources=("more",)))


def test_a_finished_result_grows_by_other_sources_with_a_note(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    finish(out, row("a"))
    with open_output(str(out), resume=True) as output:
        assert output.begin(dataclasses.replace(RECORD, sources=("more",))) == [
            "earlier rows are of other sources: photos; now more"
        ]


RENAMED = (0, 0)


def test_a_journal_in_anothers_place_is_synced_before_it_gets_the_name_and_the_name_after(
    tmp_path: Path, synced: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are appended to it next: without its name, the folder would still lead to the old one."""
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: synced.append(RENAMED) or replace(self, to))
    out, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"

    def state() -> list[tuple[int, int]]:
        return [(journal.stat().st_ino, journal.stat().st_size), RENAMED, (folder.st_ino, folder.st_size)]

    finish(out, row("a"), row("b"))
    folder = tmp_path.stat()
    with open_output(str(out), resume=True) as output:
        output.begin(RECORD)  # a copy of the finished rows takes the journal's place
        assert synced[-3:] == state()
        assert output.finished is not None
        output.write([row(item.name, size=11) for item in output.finished.remaining([image("a", None)])])
        output.complete()  # so does one without the row that was replaced
        assert paths(journal) == ["b", "a"]
        assert synced[-3:] == state()


def test_a_new_run_cut_short_leaves_the_finished_one_with_its_own_record(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    finish(out, row("a"))
    unfinished(out, row("b"), record=dataclasses.replace(RECORD, bundle="other"), overwrite=True)
    for path in tmp_path.glob("*.partial*"):
        path.unlink()
    finish(out, row("c"), resume=True)
    assert paths(out) == ["a", "c"]


def test_power_failing_between_the_last_two_renames_is_mended(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    finish(out, row("a"))
    (tmp_path / "out.jsonl.run.json").rename(tmp_path / "out.jsonl.partial.run.json")
    finish(out, row("b"), resume=True)
    assert paths(out) == ["a", "b"]


def test_power_failing_before_the_first_row_is_mended(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    (tmp_path / "out.jsonl.partial").touch()
    RECORD.write(tmp_path / "out.jsonl.partial.run.json")
    finish(out, row("a"))
    assert paths(out) == ["a"]
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.run.json"]


def test_refusing_an_unfinished_run_leaves_it_as_it_is(tmp_path: Path) -> None:
    unfinished(tmp_path / "out.jsonl", row("a"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(EarlierRunError):
        open_output(str(tmp_path / "out.jsonl"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
