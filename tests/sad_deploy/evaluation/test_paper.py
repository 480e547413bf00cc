"""The paper's attacks under its names: lengths, what counts as worst case, and what does not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sad_deploy.evaluation.evaluate import DEFENDED, UNDEFENDED, Setting
from sad_deploy.evaluation.paper import COLUMNS, STRONG, PaperTable, paper_table
from sad_deploy.evaluation.paper_figures import TABLES
from sad_deploy.evaluation.threat import Threat
from sad_deploy.evaluation.work import Images
from sad_runtime.choices import Norm
from sad_runtime.errors import UserError

from .conftest import Digits

COUNT = 12
EPSILON = 0.05


@pytest.fixture(scope="module")
def tables(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> dict[str, PaperTable]:
    """White-box and black-box, with the undefended network as the other network of the defended file."""
    folder = tmp_path_factory.mktemp("paper")
    other = dataclasses.replace(digits.subjects[UNDEFENDED].sources["own"], direct=False)
    defended = digits.subjects[DEFENDED]
    defended = dataclasses.replace(defended, sources={**defended.sources, "transfer": other})
    subjects = {DEFENDED: defended, UNDEFENDED: digits.subjects[UNDEFENDED]}
    images = Images(digits.images.pixels[:COUNT], digits.images.labels[:COUNT])
    setting = Setting([Threat(EPSILON)], budget=3.0, processes=1)
    return {table: paper_table(table, subjects, images, setting, folder) for table in ("1", "3")}


def test_lengths_follow_epsilon_in_proportion_and_the_rest_is_the_papers(
    tables: dict[str, PaperTable],
) -> None:
    scale = EPSILON / STRONG
    cells = tables["1"].rows[UNDEFENDED].cells
    found = {name: cell for name, cell in cells.items() if cell is not None}
    assert list(found) == ["WeakPGD", "StrongPGD", "C&W", "APGD"]
    ratios = {name: cell.threat.epsilon / EPSILON for name, cell in found.items() if cell.threat}
    assert ratios == pytest.approx({"WeakPGD": 0.5, "StrongPGD": 1.0, "APGD": 1.5})
    assert found["WeakPGD"].attack.step_size == pytest.approx(scale * 2 / 255)
    counts = {name: (cell.attack.steps, cell.attack.samples) for name, cell in found.items()}
    assert counts == {"WeakPGD": (20, 1), "StrongPGD": (20, 1), "C&W": (50, 1), "APGD": (12, 32)}
    assert found["C&W"].attack.constant == 0.2 and found["C&W"].threat is None


def test_black_boxes_get_the_papers_effort_in_proportion_to_the_image(digits: Digits) -> None:
    subject = digits.subjects[DEFENDED]
    for values, steps, queries in (
        (3 * 32 * 32, 75, 40_000),
        (16 * 16, 6, 3_333),
        (3 * 224 * 224, 75, 40_000),
    ):
        one_pixel = COLUMNS["OnePixel"].attack_on(subject, 3.0, values)
        zoo = COLUMNS["ZOO"].attack_on(subject, 3.0, values)
        assert one_pixel is not None and zoo is not None
        assert (one_pixel.samples, one_pixel.steps, zoo.queries) == (400, steps, queries)


def test_the_worst_case_is_below_every_attack_within_epsilon(tables: dict[str, PaperTable]) -> None:
    for table in tables.values():
        for row in table.rows.values():
            inside = [
                cell.accuracy.count
                for cell in row.cells.values()
                if cell is not None and cell.threat is not None and cell.threat.epsilon <= EPSILON
            ]
            assert row.worst.count <= min(inside, default=row.natural.count)


def test_what_lies_beyond_epsilon_is_not_counted_as_worst_case(tables: dict[str, PaperTable]) -> None:
    """APGD is given half as much again, C&W anything: what they break counts within ε alone."""
    row = tables["1"].rows[UNDEFENDED]
    for name in ("APGD", "C&W"):
        cell = row.cells[name]
        assert cell is not None
        broken = row.natural.count - cell.accuracy.count
        assert int(cell.within.sum()) <= broken
    apgd = row.cells["APGD"]
    assert apgd is not None and apgd.accuracy.count < row.natural.count
    assert int(apgd.within.sum()) < row.natural.count - apgd.accuracy.count


def test_distances_are_said_where_there_is_no_epsilon(tables: dict[str, PaperTable]) -> None:
    record = tables["1"].as_dict()["rows"]["undefended"]["attacks"]["C&W"]
    assert record["epsilon"] is None and record["distance_in"] == "L2"
    assert (record["median_distance"] is None) == (record["accuracy"]["count"] == COUNT)
    for row in tables["3"].rows.values():
        pixel = row.cells["OnePixel"]
        assert pixel is not None and pixel.measure == "L0" and pixel.distance in (None, 1.0)


def test_without_another_network_there_is_no_transfer(tables: dict[str, PaperTable]) -> None:
    assert tables["3"].rows[DEFENDED].cells["WRN"] is not None
    assert tables["3"].rows[UNDEFENDED].cells["WRN"] is None


def test_every_row_of_the_paper_has_a_figure_a_column() -> None:
    assert list(TABLES) == ["1", "2", "3", "4", "5", "s46"]
    for table in TABLES.values():
        assert set(table.columns) <= set(COLUMNS)
        for row in table.rows:
            assert len(row.values) == 1 + len(table.columns)
            assert all(value is None or 0 < value < 100 for value in row.values)
    best = max(row.values[2] or 0 for row in TABLES["1"].rows)
    assert best == 54.81  # AT+SAD on WRN-32-10, the paper's best under StrongPGD


@pytest.mark.parametrize(
    ("table", "threats", "reason"),
    [
        ("6", [Threat(0.1)], "no table '6'"),
        ("1", [Threat(0.1), Threat(0.2)], "one ε"),
        ("1", [Threat(0.5, Norm.L2)], "L∞"),
    ],
)
def test_what_cannot_be_a_table_is_refused(
    digits: Digits, tmp_path: Path, table: str, threats: list[Threat], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        paper_table(table, digits.subjects, digits.images, Setting(threats), tmp_path)


def test_a_table_is_the_same_when_it_is_taken_up_again(digits: Digits, tmp_path: Path) -> None:
    images = Images(digits.images.pixels[:6], digits.images.labels[:6])
    setting = Setting([Threat(EPSILON)], budget=1.0, processes=1)
    first = paper_table("s46", {UNDEFENDED: digits.subjects[UNDEFENDED]}, images, setting, tmp_path)
    kept = sorted(tmp_path.rglob("*.npz"))
    for path in kept[::2]:
        path.unlink()
    again = paper_table("s46", {UNDEFENDED: digits.subjects[UNDEFENDED]}, images, setting, tmp_path)
    assert again.as_dict() == first.as_dict()
    assert np.array_equal([p.name for p in sorted(tmp_path.rglob("*.npz"))], [p.name for p in kept])
