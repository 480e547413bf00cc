"""Assembles the page: the template with the summary written out, and the rows and pictures as data.

The page loads nothing: its policy lets in its own style and script by their hashes, and pictures as data.
"""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import json
import re
from collections.abc import Callable
from importlib import resources
from typing import IO

from ..manifest import Manifest
from .accuracy import accuracy
from .listing import Listing
from .pictures import tile_size
from .sample import Sample
from .summary import (
    Run,
    bars_of_classes,
    bars_of_confidence,
    captions,
    error_groups,
    facts,
    figures,
    how_to_read,
    what_is_kept,
)
from .tally import Tally
from .text import in_html

GENERATOR = '<meta name="generator" content="sad-deploy report">'
"""In the head of every page: tells a report from another file."""

_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


def write_page(
    file: IO[str],
    manifest: Manifest,
    fingerprint: str,
    run: Run,
    counts: Tally,
    listing: Listing,
    sample: Sample,
) -> None:
    """Write the page piece by piece; pictures are read from the sample one at a time.

    Args:
        file: Where to, UTF-8.
        manifest: Of the bundle that ran.
        fingerprint: Short name of the bundle.
        run: How the rows came about.
        counts: Of all rows.
        listing: The rows listed.
        sample: The pictures.
    """
    height, width = tile_size(*manifest.preprocessing.shape[1:])
    style, script = base_style() + _text("page.css"), _text("page.js")
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts: dict[str, str | Callable[[], None]] = {
        "policy": _policy(style, script),
        "style": style,
        "script": script,
        "model": in_html(manifest.model.name),
        "legend": "".join(f"<span>{in_html(each)}</span>" for each in captions(manifest, run)),
        "captions": in_html(json.dumps(captions(manifest, run), ensure_ascii=False)),
        "figures": figures(counts, run),
        "facts": facts(manifest, run, fingerprint, date),
        "classes": bars_of_classes(counts, manifest.classes),
        "confidences": bars_of_confidence(counts),
        "accuracy": accuracy(run.scores),
        "errors": error_groups(counts),
        "kept": what_is_kept(counts, listing),
        "reading": how_to_read(manifest, run),
        "height": str(height),
        "width": str(width),
        "rows": lambda: listing.write(file, manifest.classes),
        "pictures": lambda: _write_pictures(file, listing, sample),
    }
    # Split, not replaced one after the other: what is filled in may hold braces of its own.
    for i, piece in enumerate(_PLACEHOLDER.split(_text("page.html"))):
        part = piece if i % 2 == 0 else parts[piece]
        if isinstance(part, str):
            file.write(part)
        else:
            part()


def _write_pictures(file: IO[str], listing: Listing, sample: Sample) -> None:
    """The pictures as a JSON list of base64, in the order of the listing's rows."""
    file.write("[")
    for i, name in enumerate(listing.pictures):
        encoded = base64.b64encode(sample.read(name) or b"").decode("ascii")
        file.write(f'{"," if i else ""}\n"{encoded}"')
    file.write("]")


def _policy(style: str, script: str) -> str:
    return (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def base_style() -> str:
    """The stylesheet that all pages begin with."""
    return _text("base.css")


@functools.cache
def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
