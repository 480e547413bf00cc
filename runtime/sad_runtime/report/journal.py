"""The journal as the report reads it: one entry a row, in order, never all at once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One row.

    Attributes:
        path: The image's name.
        ranking: (label, probability), the prediction first; empty for a failure.
        plain_label: What the first pass said, where the row tells.
        frames: Images in the file.
        error: (code, message) of a failure.
    """

    path: str
    ranking: tuple[tuple[int, float], ...] = ()
    plain_label: int | None = None
    frames: int = 1
    error: tuple[str, str] | None = None

    @property
    def changed(self) -> bool:
        """Whether the defence is known to have changed the label."""
        return bool(self.ranking) and self.plain_label not in (None, self.ranking[0][0])


def entries(journal: Path, num_classes: int) -> Iterator[Entry]:
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
                    yield _entry(json.loads(line), num_classes)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise UserError(
                        f"line {number} of {journal} is not a result of this bundle ({error!r})",
                        hint="write the report from the results of the same run",
                    ) from None
    except OSError as error:
        raise UserError(f"cannot read {journal}: {error.strerror}") from error


def _entry(row: dict[str, Any], num_classes: int) -> Entry:
    path = row["path"]
    if not isinstance(path, str):
        raise TypeError(f"path {path!r}")
    if "error" in row:
        return Entry(path, error=(str(row["error"]["code"]), str(row["error"]["message"])))
    ranked = row.get("top_k") or [row]
    ranking = tuple((int(item["label"]), float(item["probability"])) for item in ranked)
    plain = row.get("plain_label")
    for label in (*(label for label, _ in ranking), *([] if plain is None else [plain])):
        if not 0 <= label < num_classes:
            raise ValueError(f"label {label} of {num_classes} classes")
    return Entry(path, ranking, plain, int(row.get("frames") or 1))
