"""A list of names in a message, which may be long."""

from __future__ import annotations

from collections.abc import Sequence


def shorten(names: Sequence[str], shown: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
