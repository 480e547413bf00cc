r"""A journal as a table, CSV or Parquet, in memory that does not grow with it.

A table has a column each, in this order, for what its run holds: path, label, class, probability,
plain_label, plain_class, the ranking, saliency (the overlay), saliency_l1_mean, saliency_l2, saliency_max,
frames, error_code, error_message, size, mtime_ns, the logits.

Parquet keeps ranking and logits as the lists ``top_k`` and ``logits``. CSV spreads them: the ranking's second
class is ``label_2, class_2, probability_2`` and so on, the logits are ``logit_0, logit_1, …``. A name that is
not UTF-8 shows its odd bytes as ``\udc80`` to ``\udcff``, as JSON Lines do.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ..extras import require
from ..files import written_whole
from ..result_format import ResultFormat
from .columns import Columns
from .row import flat_values

_ROWS_IN_A_GROUP = 10_000
_BYTES_IN_A_GROUP = 1 << 25  # of JSON; rows with logits are long
# A spreadsheet takes a cell that begins with one of these for a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_PREDICTION = {"label": "int", "class": "text", "probability": "float"}


def check_writable(table: ResultFormat) -> None:
    """Find out before any work that a format's package is missing.

    Raises:
        MissingExtraError: It is.
    """
    if table is ResultFormat.PARQUET:
        _require("pyarrow.parquet")


def write_table(journal: Path, table: ResultFormat, columns: Columns, target: Path) -> None:
    """Write a journal as a table, whole or not at all.

    Args:
        journal: JSON Lines, all of them rows.
        table: CSV or Parquet; JSON Lines need no table.
        columns: What the rows hold.
        target: The file to write or replace.

    Raises:
        UserError: It cannot be written.
    """
    write = {ResultFormat.CSV: _write_csv, ResultFormat.PARQUET: _write_parquet}[table]
    with written_whole(target, durable=True) as draft:
        write(journal, columns, draft)


def _groups(journal: Path) -> Iterator[list[dict[str, Any]]]:
    """The journal's rows, as many at a time as are held in memory."""
    group: list[dict[str, Any]] = []
    size = 0
    with journal.open("rb") as file:
        for line in file:
            group.append(flat_values(line))
            size += len(line)
            if len(group) == _ROWS_IN_A_GROUP or size >= _BYTES_IN_A_GROUP:
                yield group
                group, size = [], 0
    if group:
        yield group


def _scalars(columns: Columns) -> tuple[dict[str, str], dict[str, str]]:
    """Names and kinds of the columns before and after the ranking."""
    before = {"path": "text", **_PREDICTION}
    if columns.plain:
        before |= {"plain_label": "int", "plain_class": "text"}
    after: dict[str, str] = {}
    if columns.overlays:
        after["saliency"] = "text"
    if columns.statistics:
        after |= dict.fromkeys(("saliency_l1_mean", "saliency_l2", "saliency_max"), "float")
    after |= {
        "frames": "int",
        "error_code": "text",
        "error_message": "text",
        "size": "int",
        "mtime_ns": "int",
    }
    return before, after


def _write_csv(journal: Path, columns: Columns, target: Path) -> None:
    before, after = _scalars(columns)
    ranked = [f"{name}_{i}" for i in range(2, columns.ranked + 1) for name in _PREDICTION]
    logits = [f"logit_{k}" for k in range(columns.logits)]
    with target.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file)
        table.writerow([*before, *ranked, *after, *logits])
        for row in itertools.chain.from_iterable(_groups(journal)):
            ranking = [item[name] for item in row.get("top_k", ())[1:] for name in _PREDICTION]
            ranking += [None] * (len(ranked) - len(ranking))
            values = [
                *(row.get(name) for name in before),
                *ranking,
                *(row.get(name) for name in after),
                *row.get("logits", ()),
            ]
            table.writerow([_inert(value) if isinstance(value, str) else value for value in values])


def _inert(text: str) -> str:
    return "'" + text if text.startswith(_FORMULA_STARTS) else text


def _require(module: str) -> ModuleType:
    return require(module, extra="parquet", need="a Parquet file")


def _write_parquet(journal: Path, columns: Columns, target: Path) -> None:
    pyarrow, parquet = _require("pyarrow"), _require("pyarrow.parquet")
    kinds = {"text": pyarrow.string(), "int": pyarrow.int64(), "float": pyarrow.float64()}
    before, after = _scalars(columns)
    fields = {name: kinds[kind] for name, kind in before.items()}
    fields["top_k"] = pyarrow.list_(pyarrow.struct({name: kinds[kind] for name, kind in _PREDICTION.items()}))
    fields |= {name: kinds[kind] for name, kind in after.items()}
    if columns.logits:
        fields["logits"] = pyarrow.list_(pyarrow.float32())
    schema = pyarrow.schema(fields)
    with parquet.ParquetWriter(target, schema) as table:
        for group in _groups(journal):
            for row in group:
                row.update({name: _unicode(value) for name, value in row.items() if isinstance(value, str)})
            table.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def _unicode(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
