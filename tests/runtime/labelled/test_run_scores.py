from __future__ import annotations

from pathlib import Path

import pytest

from sad_runtime.errors import ErrorCode
from sad_runtime.labelled import FOLDERS, Labels, RunScores
from sad_runtime.results import Failure, PlainPass, Ranked, Row

CLASSES = ("cat", "dog", "eel")


@pytest.fixture
def scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunScores:
    monkeypatch.chdir(tmp_path)
    return RunScores(Labels.read(FOLDERS, CLASSES, tmp_path))


def row(path: str, label: int, plain: int | None = None, probability: float = 0.5) -> Row:
    first = None if plain is None else PlainPass(plain, CLASSES[plain])
    return Row(path, (Ranked(label, CLASSES[label], probability),), plain=first)


def test_both_passes_and_what_the_saliency_changed(scores: RunScores) -> None:
    scores.add(
        [row("cat/1.png", 0, 0), row("cat/2.png", 0, 1), row("dog/3.png", 2, 1), row("eel/4.png", 1, 0)]
    )
    defended, first = scores.networks["defended"], scores.networks["first pass, recalibrated"]
    assert (defended.accuracy.count, first.accuracy.count, first.accuracy.images) == (2, 2, 4)
    assert defended.mistaken(5) == [(1, 2, 1), (2, 1, 1)]
    paired = scores.paired
    assert paired is not None
    assert (paired.both, paired.only_defended, paired.only_undefended, paired.neither) == (1, 1, 1, 1)
    assert first.calibration_error is None, "rows have no confidence of the first pass"


def test_a_classifier_has_one_answer(scores: RunScores) -> None:
    scores.add([row("cat/1.png", 0, probability=0.9), row("dog/2.png", 0, probability=0.9)])
    assert list(scores.networks) == ["classifier"] and scores.paired is None
    assert scores.networks["classifier"].calibration_error == pytest.approx(40)


def test_what_is_not_finite_is_wrong_and_what_cannot_be_read_does_not_count(scores: RunScores) -> None:
    scores.add([row("cat/1.png", 0, 0)])
    scores.add([Row("cat/2.png", error=Failure(ErrorCode.NON_FINITE, "not finite"))])
    scores.add([Row("cat/3.png", error=Failure(ErrorCode.CORRUPT, "damaged"))])
    scores.add([row("loose.png", 0, 0)])
    assert len(scores) == 2 and scores.networks["defended"].accuracy.count == 1
    assert (scores.unlabelled, scores.example) == (1, "loose.png")
    assert scores.networks["defended"].confusion.sum() == 1, "no answer is taken for no class"


def test_labels_in_another_order_are_an_alarm(scores: RunScores) -> None:
    scores.add([row(f"{CLASSES[i % 3]}/{i}.png", (i + 1) % 3, 0) for i in range(30)])
    problem = scores.problem
    assert problem is not None and "none of 30 images is classified as its label" in problem[0]
