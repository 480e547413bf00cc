"""Which columns a table has; JSON Lines need no such list."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Columns:
    """What the rows of a run hold beside path, prediction and error.

    Attributes:
        ranked: Classes in each ranking.
        plain: Whether rows say what the first pass, recalibrated, answers.
        overlays: Whether rows name their saliency overlay.
        statistics: Whether rows hold the size of the saliency.
        logits: How many logits rows hold; 0 for none.
    """

    ranked: int
    plain: bool = False
    overlays: bool = False
    statistics: bool = False
    logits: int = 0
