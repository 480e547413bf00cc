"""How a table of the paper looks in the terminal: ours, then what the paper reports, column by column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sad_deploy.evaluation.data import Labelled
    from sad_deploy.evaluation.paper import Cell, PaperTable


def paper_lines(found: PaperTable, data: Labelled, model: str) -> Iterator[str]:
    """The whole table."""
    from sad_deploy.evaluation.evaluate import DEFENDED
    from sad_deploy.evaluation.paper_figures import TABLES
    from sad_deploy.evaluation.record import UPPER_BOUND

    reported = TABLES[found.table]
    which = f"{len(data.images)} {data.split} images of {data.source} · seed {found.seed}"
    yield f"table {found.table} of the paper, {reported.title} · {model} · {which}"
    yield f"StrongPGD and worst case: {found.threat}; accuracy left, in percent"
    yield ""
    table = [["", "natural", *reported.columns, "worst case"]]
    for key, row in found.rows.items():
        name = f"SAD: {row.name}" if key == DEFENDED else row.name
        cells = [_cell(row.cells[column]) for column in reported.columns]
        table.append([name, f"{row.natural.percent:.1f}", *cells, f"{row.worst.percent:.1f}"])
    ours = len(table)
    for each in reported.rows:
        method = f"η {each.method}" if each.method[0].isdigit() else each.method
        values = ["–" if value is None else f"{value:.2f}" for value in each.values]
        table.append([f"{method}, {each.network}", *values, "–"])
    lines = _aligned(table)
    yield from lines[:ours]
    if lines[ours:]:
        yield ""
        yield "  the paper, ε 8/255 for StrongPGD, no worst case"
        yield from lines[ours:]
    yield ""
    yield "  (…): median distance of what fooled, of attacks without ε; only within ε it counts as worst"
    if any(cell is None for row in found.rows.values() for cell in row.cells.values()):
        yield "  –: needs another network, --transfer MODEL.onnx"
    yield f"  {UPPER_BOUND}"


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    text = f"{cell.accuracy.percent:.1f}"
    if not cell.measure:
        return text
    distance = "none" if cell.distance is None else f"{cell.measure} {cell.distance:.3g}"
    return f"{text} ({distance})"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell, figures to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    return [
        "  "
        + line[0].ljust(widths[0])
        + "".join(f"{cell:>{width + 2}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in table
    ]
