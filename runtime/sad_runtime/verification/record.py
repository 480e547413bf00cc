"""What a trial found, remembered: a graph on a device by a runtime is tried once.

``~/.cache/sad-deploy/verified/KEY.json``, where KEY is the hash of everything that decides the result. A
folder that cannot be read or written only means that the next run tries again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import cache_folder, written_whole
from ..version import __version__


@dataclasses.dataclass(frozen=True)
class Record:
    """What is remembered of a trial.

    Attributes:
        shortfalls: Figures outside their tolerance, in words; empty if all was well.
        seconds_per_image: Wall time; None where none was taken.
        images: How many it was tried on.
    """

    shortfalls: tuple[str, ...]
    seconds_per_image: float | None
    images: int


def key_of(ingredients: Mapping[str, Any]) -> str:
    """The key of a trial: graph, references, runtime, device and options, as JSON values."""
    text = json.dumps({**ingredients, "sad-deploy": __version__}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def remembered(key: str) -> Record | None:
    """What was found before, if it was and can be read."""
    try:
        found = json.loads(_path(key).read_bytes())
        seconds = None if found["seconds_per_image"] is None else float(found["seconds_per_image"])
        return Record(tuple(map(str, found["shortfalls"])), seconds, int(found["images"]))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # the last: nobody's home is known
        return None


def remember(key: str, record: Record) -> None:
    """Keep it, if that is possible."""
    with contextlib.suppress(OSError, UserError, RuntimeError):
        path = _path(key)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with written_whole(path) as draft:
            draft.write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n", encoding="utf-8")


def _path(key: str) -> Path:
    return cache_folder() / "verified" / f"{key}.json"
