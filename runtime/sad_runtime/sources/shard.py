"""One part of the work, for batch schedulers that run the same command n times."""

from __future__ import annotations

import dataclasses
import re
from typing import Self

from ..errors import UserError


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """Part ``index`` of ``count``: item k of the order, from 0, belongs to part (k mod count) + 1.

    The parts are disjoint and together complete, as long as every run sees the same files.

    Attributes:
        index: Which part, from 1.
        count: How many parts.

    Raises:
        UserError: The index is not from 1 to the count.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise _wrong(f"{self.index}/{self.count}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``I/N``.

        Args:
            text: For example ``2/8``, the second of eight parts.

        Raises:
            UserError: It is not of this form, or I is not from 1 to N.
        """
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match is None:
            raise _wrong(text)
        return cls(int(match[1]), int(match[2]))

    def owns(self, k: int) -> bool:
        """Whether item k of the order, from 0, belongs to this part."""
        return k % self.count == self.index - 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def _wrong(text: str) -> UserError:
    return UserError(
        f"{text!r} is not a shard",
        hint="write I/N with I from 1 to N, for example 2/8 for the second of eight",
    )
