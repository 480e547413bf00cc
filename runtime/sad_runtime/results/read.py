"""The journal read again at a run's end: row by row, never all at once, every label of this bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from .row import Row


def read_rows(journal: Path, num_classes: int) -> Iterator[Row]:
    """The rows of a journal; a torn last line is left out.

    Args:
        journal: JSON Lines.
        num_classes: K; labels must lie below.

    Raises:
        UserError: It cannot be read, or a line is not a row of this bundle.
    """
    try:
        with journal.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    row = Row.from_json(line)
                    _check_labels(row, num_classes)
                except ValueError as error:
                    raise UserError(
                        f"line {number} of {journal} is not a result of this bundle ({error})",
                        hint="give the results of the same run",
                    ) from None
                yield row
    except OSError as error:
        raise UserError(f"cannot read {journal}: {error.strerror}") from error


def _check_labels(row: Row, num_classes: int) -> None:
    for ranked in row.ranking:
        if not 0 <= ranked.label < num_classes:
            raise ValueError(f"label {ranked.label} of {num_classes} classes")
    if row.plain is not None and not 0 <= row.plain.label < num_classes:
        raise ValueError(f"label {row.plain.label} of {num_classes} classes")
