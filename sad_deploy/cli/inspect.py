"""``sad-deploy inspect``: what a bundle is, and whether its files are still what was written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from .bundle_tables import engines, facts, files, graphs, sweep
from .console import print_error, print_hint, print_json, print_result
from .options import DEFAULT_BUNDLE, AsJson, BundleArgument

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sad_runtime.bundle import Bundle

_EXIT_CHANGED = 2


def inspect(bundle: BundleArgument = DEFAULT_BUNDLE, *, as_json: AsJson = False) -> None:
    """Show what a bundle is and how good; check every file. Exit code 2 if one was changed.

    Figures are those of its calibration and exports; each comes with what would be good.
    """
    from sad_runtime.bundle import Bundle

    opened = Bundle.open(bundle)
    changed = opened.changed_files()
    if as_json:
        print_json(_as_json(opened, changed))
    else:
        for part in _parts(opened, changed):
            print_result(part)
    if changed:
        print_error(f"{bundle}: changed since the bundle was written: {', '.join(changed)}")
        print_hint("restore the files, or write the bundle again")
        raise typer.Exit(_EXIT_CHANGED)


def _as_json(bundle: Bundle, changed: list[str]) -> dict[str, Any]:
    states = {
        name: {"bytes": (bundle.root / name).stat().st_size, "unchanged": name not in changed}
        for name in bundle.manifest.files
    }
    manifest: Mapping[str, Any] = json.loads(bundle.manifest.to_json())
    return {"bundle": str(bundle.root), "manifest": manifest, "files": states}


def _parts(bundle: Bundle, changed: list[str]) -> Iterator[RenderableType]:
    yield facts(bundle)
    if (table := sweep(bundle.manifest)) is not None:
        yield table
    yield from graphs(bundle.manifest)
    yield from engines(bundle)
    yield files(bundle, changed)
