"""The values of ``--format``, apart from what writes them so that naming them imports nothing."""

from __future__ import annotations

import enum
from pathlib import Path


class ResultFormat(enum.StrEnum):
    """What a result file is."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"

    @classmethod
    def of(cls, path: str) -> ResultFormat:
        """The format that a file name's ending says; JSON Lines if it says none."""
        ending = Path(path).suffix.lower().removeprefix(".")
        return cls(ending) if ending in set(cls) else cls.JSONL
