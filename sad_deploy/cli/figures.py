"""Figures of a verification for people: with their units, and what is good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_GOOD = {
    "label_agreement": "100 %",
    "plain_label_agreement": "100 %",
    "logits_relative_l2": "near 0",
    "plain_logits_relative_l2": "near 0",
    "saliency_cosine_median": "near 1",
    "saliency_cosine_min": "near 1",
    "saliency_variation": "far from 0, where all images have one saliency",
    "zero_saliencies": "0 images",
    "slope_error": "below 5 %",
}
_SHARES = {"label_agreement", "plain_label_agreement", "slope_error"}


def figures_table(title: str, columns: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each figure, a column for each of several graphs."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", show_header=any(columns))
    for name in ("", *columns, "good is"):
        table.add_column(Text(name), overflow="fold")
    names = dict.fromkeys(name for figures in columns.values() for name in figures)
    for name in names:
        values = [in_words(name, figures[name]) if name in figures else "" for figures in columns.values()]
        table.add_row(name.replace("_", " "), *values, _GOOD.get(name, ""))
    return table


def in_words(name: str, value: float) -> str:
    """A figure with its unit."""
    if name in _SHARES:
        return f"{100 * value:.6g} %"
    if name in ("images", "zero_saliencies"):
        return f"{value:g}"
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:.6g}"
