"""The report of a run with labels: wrong answers are marked, filtered, and sorted by what changed them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sad_runtime.labelled import Labels, RunScores
from sad_runtime.report import Report
from sad_runtime.results import read_rows

from .test_report_page import Visit, choose, manifest_of, paths

CLASSES = ("cat", "dog")
LOST, GAINED, RIGHT, WRONG = "cat/lost.png", "cat/gained.png", "dog/right.png", "dog/wrong.png"


def row(path: str, label: int, plain: int) -> dict[str, Any]:
    top = {"label": label, "class": CLASSES[label], "probability": 0.75}
    return {"path": path, **top, "top_k": [top], "plain_label": plain, "plain_class": CLASSES[plain]}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    rows = [row(RIGHT, 1, 1), row(GAINED, 0, 1), row(WRONG, 0, 0), row(LOST, 1, 0)]
    journal = folder / "journal.jsonl"
    journal.write_text("".join(json.dumps(each) + "\n" for each in rows))
    scores = RunScores(Labels.read("folders", CLASSES, Path.cwd()))
    scores.add(read_rows(journal, 2))
    with Report(folder / "report.html", manifest_of(CLASSES)) as report:
        return report.finish(journal, seconds=1, backend="cpu", scores=scores)


def test_wrong_ones_alone_and_what_they_show(page: Path, visit: Visit) -> None:
    browser = visit(page)
    choose(browser, show="wrong")
    assert sorted(paths(browser)) == [LOST, WRONG]
    marks = browser.execute_script(
        "return [...document.querySelectorAll('#list .error')].map(e => e.textContent)"
    )
    assert sorted(marks) == ["Wrong: it shows cat", "Wrong: it shows dog"]


def test_what_the_defence_lost_comes_first_then_what_it_gained(page: Path, visit: Visit) -> None:
    browser = visit(page)
    choose(browser, sort="change")
    assert paths(browser)[:2] == [LOST, GAINED]
    notes = browser.execute_script(
        "return [...document.querySelectorAll('#list .note')].map(e => e.textContent)"
    )
    assert [note.rsplit(", ")[-1] for note in notes] == ["which is right", "which is wrong"]


def test_the_figures_need_no_script(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.index("50.00 %") < text.index("<noscript>") and "2 of 4" in text
    assert "put 1 right and 1 wrong" in text
