"""``sad-deploy inspect``: what a bundle is, and whether its files are still what was written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import print_error, print_hint, stdout

if TYPE_CHECKING:
    from rich.table import Table

    from sad_runtime.bundle import Bundle

_EXIT_CHANGED = 2
_SHOWN_CLASSES = 10


def inspect(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")] = Path("sad-model"),
    as_json: Annotated[
        bool, typer.Option("--json", help="The manifest and the state of every file, as JSON.")
    ] = False,
) -> None:
    """Show a bundle's manifest and check every file against its SHA-256; exit code 2 if one was changed."""
    from sad_runtime.bundle import Bundle

    opened = Bundle.open(bundle)
    changed = opened.changed_files()
    if as_json:
        typer.echo(json.dumps(_as_json(opened, changed), indent=2))
    else:
        from rich.console import Group

        stdout.print(Group(_summary(opened), _figures(opened), _files(opened, changed)))
    if changed:
        print_error(f"{bundle}: changed since the bundle was written: {', '.join(changed)}")
        print_hint("restore the files, or write the bundle again")
        raise typer.Exit(_EXIT_CHANGED)


def _as_json(bundle: Bundle, changed: list[str]) -> dict[str, Any]:
    files = {
        name: {"bytes": (bundle.root / name).stat().st_size, "unchanged": name not in changed}
        for name in bundle.manifest.files
    }
    return {"bundle": str(bundle.root), "manifest": json.loads(bundle.manifest.to_json()), "files": files}


def _summary(bundle: Bundle) -> Table:
    manifest = bundle.manifest
    preprocessing, space, defence = manifest.preprocessing, manifest.input_space, manifest.defence
    channels, height, width = preprocessing.shape
    if isinstance(preprocessing.resize, int):
        resize = f"shorter side {preprocessing.resize}"
    else:
        resize = "×".join(map(str, preprocessing.resize))
    names = ", ".join(manifest.classes[:_SHOWN_CLASSES])
    if len(manifest.classes) > _SHOWN_CLASSES:
        names += f" and {len(manifest.classes) - _SHOWN_CLASSES} more"
    rows = {
        "model": manifest.model.name,
        "classes": f"{len(manifest.classes)}: {names}",
        "input": f"{channels}×{height}×{width} {preprocessing.color.name}, in [0, 1]",
        "preprocessing": f"resize {resize} ({preprocessing.interpolation}), crop {height}×{width}, "
        f"EXIF orientation {preprocessing.exif_orientation}",
        "mean": _numbers(space.mean),
        "std": _numbers(space.std),
        "η": f"{defence.eta:g}",
        "normalisation of S": str(defence.normalization),
        "clip": "to the pixel range" if defence.clip else "none",
        "written by": f"{manifest.created_by}, schema {manifest.schema}",
    }
    return _table(f"bundle {bundle.root}", ("", ""), rows.items())


def _figures(bundle: Bundle) -> Table:
    manifest = bundle.manifest
    rows = [(f"calibration.{name}", value) for name, value in _flattened(manifest.calibration)]
    for graph in manifest.graphs:
        rows.append((graph.file, f"{graph.precision}, target {graph.target}, dgrad {graph.dgrad}"))
        rows += [(f"{graph.file}: {name}", value) for name, value in _flattened(graph.verification)]
    for engine in manifest.engines:
        rows.append((engine.file, f"{engine.flavor}, {engine.precision}, from {engine.graph}"))
        rows.append((f"{engine.file}: built", _build_of(bundle.root / engine.sidecar)))
    if not manifest.graphs:
        rows.append(("graphs", "none yet: sad-deploy export"))
    return _table("calibration, graphs, engines", ("", ""), rows)


def _build_of(sidecar: Path) -> str:
    """What an engine is for, from the file beside it."""
    from sad_runtime.errors import BundleError
    from sad_runtime.tensorrt import read_sidecar

    try:
        info = read_sidecar(sidecar)
    except BundleError as error:
        return error.message
    smallest, best, largest = info.batch
    return (
        f"by {info.flavor} {info.version} for {', '.join(info.targets)}, "
        f"batch {smallest} to {largest} (best {best}), TF32 {'on' if info.tf32 else 'off'}, "
        f"optimisation level {info.optimization_level}"
    )


def _files(bundle: Bundle, changed: list[str]) -> Table:
    rows = (
        (
            name,
            _size((bundle.root / name).stat().st_size),
            f"{digest[:12]}…",
            "CHANGED" if name in changed else "unchanged",
        )
        for name, digest in sorted(bundle.manifest.files.items())
    )
    return _table("files", ("file", "size", "SHA-256", "since written"), rows)


def _table(title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    columns = tuple(columns)
    table = Table(title=title, title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text: names and figures are data, never markup.
        table.add_row(*(Text(cell) for cell in row))
    return table


def _flattened(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested figures as dotted names; lists shortened."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield prefix + name, f"{value:.6g}"
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield prefix + name, text if len(text) <= 200 else f"{text[:200]}…"


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} bytes"
    return f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MiB"
