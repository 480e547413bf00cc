"""The whole evaluation: worst case, pairs, checks, pieces taken up again, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sad_deploy.evaluation import plan
from sad_deploy.evaluation.evaluate import DEFENDED, UNDEFENDED, Evaluation, Setting, evaluate
from sad_deploy.evaluation.plan import Costs, Effort, affordable
from sad_deploy.evaluation.subject import Subject
from sad_deploy.evaluation.threat import Threat
from sad_deploy.evaluation.work import Images
from sad_runtime.errors import UserError

from .conftest import Digits

QUICK = Effort(10, 1, 30, 20)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "EFFORTS", (QUICK,))


def run(digits: Digits, folder: Path, epsilon: float = 0.06, **setting: object) -> Evaluation:
    threats = [Threat(epsilon)]
    return evaluate(digits.subjects, digits.images, Setting(threats, processes=1, **setting), folder)  # type: ignore[arg-type]


@pytest.mark.usefixtures("quick")
def test_the_worst_case_is_per_image_and_paired(digits: Digits, tmp_path: Path) -> None:
    (result,) = run(digits, tmp_path).results
    outcome, other, paired = result.defended, result.undefended, result.paired
    assert other is not None and paired is not None
    survivors = outcome.clean.copy()
    for row in outcome.rows:
        survivors &= ~row.broken
        assert row.worst.count == survivors.sum()
        if row.alone is not None:
            assert row.alone.count == (outcome.clean & ~row.broken).sum() >= row.worst.count
    assert outcome.worst_case.count == survivors.sum() < outcome.clean_accuracy.count
    assert paired.both + paired.only_defended == outcome.worst_case.count
    assert paired.both + paired.only_undefended == other.worst_case.count
    assert outcome.threat.allows(outcome.adversarial, digits.images.pixels).all()
    ids = {check.id for check in result.checks}
    assert {"masking_transfer", "large_epsilon", "twice_the_steps", "zero_gradients", "rounding"} <= ids


@pytest.mark.usefixtures("quick")
def test_the_same_seed_gives_the_same_in_one_process_and_in_two(digits: Digits, tmp_path: Path) -> None:
    one = run(digits, tmp_path / "a")
    two = evaluate(digits.subjects, digits.images, Setting([Threat(0.06)], processes=2), tmp_path / "b")
    for a, b in zip(one.results[0].defended.rows, two.results[0].defended.rows, strict=True):
        np.testing.assert_array_equal(a.broken, b.broken)
    np.testing.assert_array_equal(one.results[0].defended.adversarial, two.results[0].defended.adversarial)


def test_killed_at_random_the_resumed_result_is_the_uninterrupted_one(digits: Digits, tmp_path: Path) -> None:
    """Five kills of one evaluation; the sixth call finishes it."""
    script = tmp_path / "go.py"
    script.write_text(
        "import pickle, sys\n"
        "from pathlib import Path\n"
        "from sad_deploy.evaluation import plan\n"
        "from sad_deploy.evaluation.evaluate import Setting, evaluate\n"
        "from sad_deploy.evaluation.threat import Threat\n"
        "plan.EFFORTS = (plan.Effort(20, 1, 60, 40),)\n"
        "subjects, images = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "found = evaluate(subjects, images, Setting([Threat(0.06)], processes=1), Path(sys.argv[2]))\n"
        "o = found.results[0].defended\n"
        "Path(sys.argv[3]).write_bytes(pickle.dumps(([r.broken for r in o.rows], o.adversarial)))\n"
    )
    import pickle

    inputs = tmp_path / "in.pickle"
    inputs.write_bytes(pickle.dumps((digits.subjects, digits.images)))

    def call(folder: str, out: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, script, inputs, tmp_path / folder, tmp_path / out]
        return subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"})

    assert call("whole", "whole.pickle").wait() == 0
    rng = np.random.default_rng(0)
    for _ in range(5):
        process = call("cut", "cut.pickle")
        deadline = time.monotonic() + 60
        before = len(list((tmp_path / "cut").rglob("*.npz"))) if (tmp_path / "cut").exists() else 0
        wanted = before + int(rng.integers(1, 4))
        while process.poll() is None and time.monotonic() < deadline:
            if len(list((tmp_path / "cut").rglob("*.npz"))) >= wanted:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert call("cut", "cut.pickle").wait() == 0
    whole, cut = (pickle.loads((tmp_path / f"{name}.pickle").read_bytes()) for name in ("whole", "cut"))
    for a, b in zip(whole[0], cut[0], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(whole[1], cut[1])


def test_a_budget_takes_the_strongest_attacks_that_fit(digits: Digits) -> None:
    costs = {key: Costs(1e-3, dict.fromkeys(each.sources, 2e-3)) for key, each in digits.subjects.items()}
    threats = [Threat(0.1)]
    spent = []
    for seconds in (None, 300.0, 60.0, 1.0):
        effort = affordable(digits.subjects, costs, threats, 48, seconds)
        spent.append(plan.expected_cost(digits.subjects, costs, effort, threats, 48))
        assert bool(plan.left_out(effort)) == (effort != plan.EFFORTS[0])
        if seconds not in (None, 1.0):
            assert spent[-1] <= seconds
    assert spent == sorted(spent, reverse=True)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (lambda y: y + 10, "label 1. is none of the 10 classes"),
        (lambda y: (y + 1) % 10, "none of 48 images is classified as its label"),
        (lambda y: np.random.default_rng(0).integers(0, 10, len(y)), "that of chance among 10 classes"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_labels_that_cannot_be_right_are_said(
    digits: Digits, tmp_path: Path, labels: object, reason: str
) -> None:
    wrong = dataclasses.replace(digits, images=Images(digits.images.pixels, labels(digits.images.labels)))  # type: ignore[operator]
    with pytest.raises(UserError, match=reason):
        run(wrong, tmp_path)


def test_both_subjects_are_there(digits: Digits) -> None:
    assert set(digits.subjects) == {DEFENDED, UNDEFENDED}
    assert set(digits.subjects[DEFENDED].sources) == {"plain", "base", "constant", "exact"}


def test_a_budget_that_was_chosen_once_holds_for_what_is_taken_up_again(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that is ten times as fast by now, too."""
    first = run(digits, tmp_path, budget=2.0)

    def fast(subject: Subject, *images: object) -> Costs:
        return Costs(1e-9, dict.fromkeys(subject.sources, 1e-9))

    monkeypatch.setattr(Costs, "measured", fast)
    again = run(digits, tmp_path, budget=2.0)
    assert again.effort == first.effort != plan.EFFORTS[0] and again.left_out == first.left_out
