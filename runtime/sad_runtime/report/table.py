"""Tables of the pages, as HTML."""

from __future__ import annotations

from collections.abc import Sequence

from .text import in_html


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways where there is no room; texts are escaped."""
    titles = "".join(f"<th scope=col>{in_html(each)}</th>" for each in head)
    body = "".join("<tr>" + "".join(f"<td>{in_html(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
