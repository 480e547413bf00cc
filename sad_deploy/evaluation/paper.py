"""The attacks of the paper's tables under their names there, beside the worst case, which the paper lacks.

What the paper says of them (section 4.2): WeakPGD, k = 20, 4/255; StrongPGD, k = 20, 8/255; C&W, c = 0.2;
APGD, which is expectation over transformation with PGD (not Auto-PGD), k = 12, 12/255, sampling = 32; One
Pixel; ZOO; and WRN, images made on another network. What it does not say is assumed here:

- Steps of PGD are 2/255, and it starts at a random point. The victim is shown the points of all steps.
- APGD averages over noise of a tenth of ε: a network that is not random has nothing else to average over.
- C&W: 50 steps of Adam at 0.01, which is L2. One Pixel: 400 candidates, 75 generations. ZOO: 40,000 scores.
  The last two are for 3 · 32 · 32 values; smaller images get generations and scores in proportion.
- WRN is StrongPGD on the other network.
- Gradients are those of the judged file, through both passes with S held constant.

ε is that of StrongPGD; all other lengths in L∞ follow it in proportion. C&W, One Pixel and ZOO know no ε: of
them the share of images that resist is said, with the median distance of the others, and what they find
counts towards the worst case only where it lies within ε.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sad_runtime.choices import Norm
from sad_runtime.errors import UserError
from sad_runtime.labelled import Share, share

from .campaign import Campaign
from .evaluate import DEFENDED, UNDEFENDED, Setting, prepared
from .paper_figures import TABLES
from .plan import KNOWS, Effort, Stage
from .subject import Subject
from .threat import ANYWHERE, Array, Threat, lengths
from .work import Attack, Images

STRONG = 8 / 255
"""ε of StrongPGD in the paper, to which all lengths in L∞ are relative."""

_VALUES = 3 * 32 * 32
"""Of an image of the paper's."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One attack of the paper.

    Attributes:
        name: As the tables have it.
        attack: Lengths as for the paper's images; its source is chosen for the subject.
        epsilon: Likewise; None for attacks that make the distance small.
        measure: Of that distance: ``L2`` or ``L0``.
        transfer: Whether the gradient is another network's.
    """

    name: str
    attack: Attack
    epsilon: float | None = None
    measure: str = ""
    transfer: bool = False

    def attack_on(self, subject: Subject, scale: float, values: int) -> Attack | None:
        """The attack on one subject; None if it lacks the source of gradients.

        Args:
            subject: What is attacked.
            scale: What lengths in L∞ are multiplied by.
            values: C · H · W.
        """
        attack, source = self.attack, ""
        if self.transfer:
            source = "transfer"
        elif KNOWS[attack.kind] == "weights":
            source = "own" if "own" in subject.sources else "constant"
        if source and source not in subject.sources:
            return None
        part = min(1.0, values / _VALUES) if KNOWS[attack.kind] == "scores" else 1.0
        return dataclasses.replace(
            attack,
            source=source,
            step_size=scale * attack.step_size,
            steps=max(round(part * attack.steps), 1),
            queries=round(part * attack.queries),
        )


_STEP = 2 / 255
_PGD = Attack("pgd", steps=20, step_size=_STEP)
COLUMNS: Mapping[str, Column] = {
    column.name: column
    for column in (
        Column("WeakPGD", _PGD, 4 / 255),
        Column("StrongPGD", _PGD, STRONG),
        Column("C&W", Attack("cw", steps=50, constant=0.2), measure="L2"),
        Column("APGD", Attack("pgd", steps=12, step_size=_STEP, samples=32), 12 / 255),
        Column("OnePixel", Attack("onepixel", steps=75, samples=400), measure="L0"),
        Column("ZOO", Attack("zoo", queries=40_000), measure="L2"),
        Column("WRN", _PGD, STRONG, transfer=True),
    )
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """What one attack did to one subject.

    Attributes:
        accuracy: What it left.
        attack: With the lengths that were used.
        threat: What was allowed; None: anything.
        measure: ``L2`` or ``L0`` where no ε bounds it.
        distance: Median of that over the images that it fooled; None where there is none.
        within: (N,) which images it fooled within the worst case's threat.
    """

    accuracy: Share
    attack: Attack
    threat: Threat | None
    measure: str
    distance: float | None
    within: Array


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """One subject.

    Attributes:
        name: Of it.
        natural: Its accuracy unattacked.
        cells: By the column's name; None where it could not be run.
        worst: Accuracy in the worst case, per image over all attacks of ``evaluate`` and these.
    """

    name: str
    natural: Share
    cells: Mapping[str, Cell | None]
    worst: Share


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables for one bundle or classifier.

    Attributes:
        table: Its number.
        threat: Of the worst case: ε of StrongPGD.
        rows: ``defended`` and ``undefended``, or one of them.
        images: What was attacked.
        effort: Of the worst case.
        seed: Of all random numbers.
    """

    table: str
    threat: Threat
    rows: Mapping[str, PaperRow]
    images: Images
    effort: Effort
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "table": self.table,
            "norm": str(self.threat.norm),
            "epsilon": self.threat.epsilon,
            "images": len(self.images),
            "seed": self.seed,
            "worst_case_effort": dataclasses.asdict(self.effort),
            "rows": {key: _row_as_dict(row) for key, row in self.rows.items()},
            "paper": TABLES[self.table].as_dict(),
        }


def paper_table(
    table: str, subjects: Mapping[str, Subject], images: Images, setting: Setting, folder: Path
) -> PaperTable:
    """Run the attacks of a table, and the worst case.

    Args:
        table: ``1`` to ``5``, or ``s46``.
        subjects: ``defended``, ``undefended``, or one of them.
        images: What is attacked.
        setting: Its only threat is StrongPGD's.
        folder: Where results of pieces lie.

    Raises:
        UserError: There is no such table, or the threat is another kind of one.
    """
    if table not in TABLES:
        raise UserError(f"the paper has no table {table!r}", hint=f"one of {', '.join(TABLES)}")
    if len(setting.threats) != 1 or setting.threats[0].norm is not Norm.LINF:
        raise UserError(
            "the paper's tables are in L∞ at one ε, that of StrongPGD",
            hint="--epsilon 8/255, as the paper has it",
        )
    (threat,) = setting.threats
    keys = [key for key in (DEFENDED, UNDEFENDED) if key in subjects]
    chosen = {key: subjects[key] for key in keys}
    columns = [COLUMNS[name] for name in TABLES[table].columns]
    with prepared(chosen, images, setting, folder) as campaign:
        campaign.total += sum(_cost(campaign, key, column, threat) for key in keys for column in columns)
        rows = {key: _row(campaign, key, columns, threat) for key in keys}
        return PaperTable(table, threat, rows, images, campaign.effort, setting.seed)


def _attack(campaign: Campaign, key: str, column: Column, worst: Threat) -> Attack | None:
    values = campaign.images.pixels[0].size
    return column.attack_on(campaign.subjects[key], worst.epsilon / STRONG, values)


def _cost(campaign: Campaign, key: str, column: Column, worst: Threat) -> float:
    """CPU seconds at most."""
    attack = _attack(campaign, key, column, worst)
    return 0.0 if attack is None else len(campaign.images) * campaign.costs[key].of(attack)


def _row(campaign: Campaign, key: str, columns: Sequence[Column], threat: Threat) -> PaperRow:
    outcome = campaign.attack(key, threat)
    cells = {column.name: _cell(campaign, key, column, threat, outcome.clean) for column in columns}
    robust = outcome.robust
    for cell in cells.values():
        if cell is not None:
            robust = robust & ~cell.within
    return PaperRow(outcome.name, outcome.clean_accuracy, cells, share(robust))


def _cell(campaign: Campaign, key: str, column: Column, worst: Threat, clean: Array) -> Cell | None:
    pixels, attack = campaign.images.pixels, _attack(campaign, key, column, worst)
    if attack is None:
        return None
    threat = None
    if column.epsilon is not None:
        threat = Threat(min(worst.epsilon / STRONG * column.epsilon, 1.0))
    stage = Stage(column.name, KNOWS[attack.kind], column.name, (attack,))
    row, found = campaign.run_stage(key, stage, threat or ANYWHERE, clean)
    within = np.zeros(len(clean), bool)
    index = np.array(sorted(found), int)
    distance = None
    if len(index):
        changed = np.stack([found[i] for i in index])
        within[index] = worst.allows(changed, pixels[index])
        if column.measure:
            distance = float(np.median(_distances(changed, pixels[index], column.measure)))
    return Cell(share(clean & ~row.broken), attack, threat, column.measure, distance, within)


def _distances(changed: Array, origin: Array, measure: str) -> Array:
    """(n,) in L2, or the number of pixels that differ in any channel."""
    if measure == "L2":
        return lengths(changed - origin)
    count: Array = (changed != origin).any(1).sum((1, 2))
    return count


def _row_as_dict(row: PaperRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "natural": row.natural.as_dict(),
        "attacks": {name: _cell_as_dict(cell) for name, cell in row.cells.items()},
        "worst_case": row.worst.as_dict(),
    }


def _cell_as_dict(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    return {
        "accuracy": cell.accuracy.as_dict(),
        "attack": dataclasses.asdict(cell.attack),
        "epsilon": None if cell.threat is None else cell.threat.epsilon,
        "median_distance": cell.distance,
        "distance_in": cell.measure or None,
        "fooled_within_epsilon": int(cell.within.sum()),
    }
