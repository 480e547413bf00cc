from __future__ import annotations

import itertools

import pytest

from sad_deploy.cli.progress import Lines, duration
from sad_deploy.progress import Pace


@pytest.mark.parametrize("step", [0.1, 60.0, 600.0])
def test_what_is_left_is_right_from_the_second_step_also_when_a_step_takes_minutes(step):
    pace = Pace(0.0)
    assert pace.left("a", 10, 0.0) is None
    pace.step("a", 5 + step)  # the first holds the start
    pace.step("a", 5 + 2 * step)
    assert pace.left("a", 8, 5 + 2 * step) == pytest.approx(8 * step)
    assert pace.left("a", 8, 5 + 2.5 * step) == pytest.approx(7.5 * step), "it goes down within a step"
    assert pace.left("a", 1, 5 + 9 * step) == 0, "and never below nothing"


def test_a_stage_within_another_does_not_count_as_it():
    pace = Pace(0.0)
    for now in (10, 20):
        pace.step("calibrating", now)
    pace.step("trying eta", 500)
    pace.step("calibrating", 510)
    assert pace.left("calibrating", 3, 510) == pytest.approx(30)


def test_the_latest_steps_count():
    pace = Pace(0.0)
    times = itertools.accumulate([50.0, 50.0, *[1.0] * 8])
    for now in times:
        pace.step("calibrating", now)
    assert pace.left("calibrating", 10, 108.0) == pytest.approx(10)


def test_where_there_is_no_terminal_a_line_is_written_now_and_then():
    now = 0.0
    said: list[str] = []
    lines = Lines(lambda: now, said.append)
    for step in range(1, 13):
        now += 12.0
        lines.report("calibrating", step, 12)
    assert said == [
        "calibrating: 1 of 12, 2 min 12 s left",
        "calibrating: 4 of 12, 1 min 36 s left",
        "calibrating: 7 of 12, 1 min left",
        "calibrating: 10 of 12, 24 s left",
    ]


def test_short_work_says_nothing():
    now = 0.0
    said: list[str] = []
    lines = Lines(lambda: now, said.append)
    for step in range(1, 5):
        now += 1.0
        lines.report("measuring", step, 9)
    assert said == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min"), (185, "3 min 5 s"), (3600, "1 h"), (7800, "2 h 10 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
