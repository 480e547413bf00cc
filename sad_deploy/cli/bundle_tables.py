"""A bundle in tables: its facts, the sweep of η, the figures of its graphs, engines, files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import figures_table

if TYPE_CHECKING:
    from rich.table import Table

    from sad_runtime.bundle import Bundle
    from sad_runtime.manifest import Manifest

_SHOWN_CLASSES = 10
_LONGEST_VALUE = 200
_SHIFT = "statistics_shift"
# Told in words, or in a table of its own.
_TOLD = ("clean_accuracy", "eta")


def facts(bundle: Bundle) -> Table:
    """What the network takes and gives, what the defence is and what it costs."""
    from sad_runtime.bundle.robustness import robustness

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
        **dict(_accuracy(manifest.calibration)),
        "robust accuracy": "\n".join(robustness(bundle)),
        **dict(_calibration(manifest.calibration)),
        "written by": f"{manifest.created_by}, schema {manifest.schema}",
    }
    return _table(f"bundle {bundle.root}", ("", ""), rows.items())


def _accuracy(calibration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    measured = calibration.get("clean_accuracy")
    if not isinstance(measured, Mapping) or "after_percent" not in measured:
        if measured is not None:
            yield from _flattened({"clean accuracy": measured})
        return
    before, after = measured["before_percent"], measured["after_percent"]
    low, high = measured.get("drop_95_percent_interval", (None, None))
    sure = "" if low is None else f", with 95 % confidence {-high:+.1f} to {-low:+.1f}"
    yield (
        "clean accuracy",
        f"{before:.2f} % before, {after:.2f} % with the defence ({after - before:+.2f} points{sure}; "
        f"{measured['images']} {measured['split']} images, against {measured['against']})",
    )
    if "first_pass_percent" in measured:
        yield "first pass, recalibrated", f"{measured['first_pass_percent']:.2f} %"


def _calibration(calibration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How it was calibrated; one row for a nested value."""
    for name, value in calibration.items():
        if name in _TOLD:
            continue
        words = ", ".join(f"{key} {text}" if key else text for key, text in _flattened({"": value}))
        what = name.replace("_", " ")
        yield f"calibration: {what}", f"{words} (0: as before)" if name == _SHIFT else words


def sweep(manifest: Manifest) -> Table | None:
    """Clean accuracy by η, as calibrate printed it; None where η was given."""
    eta = manifest.calibration.get("eta")
    if not isinstance(eta, Mapping) or "rows" not in eta:
        return None
    rows = [
        (
            f"{row['eta']:g}",
            f"{row['grey_levels']:.2g} of 255" if row.get("grey_levels") else "",
            f"{row['clean_percent']:.2f}",
            # A row that was given up early has other images than the rest.
            f"{-row.get('drop_points', eta['before_percent'] - row['clean_percent']):+.2f}",
            "chosen"
            if row["eta"] == manifest.defence.eta
            else ("recalibration alone" if row["eta"] == 0 else ""),
        )
        for row in eta["rows"]
    ]
    title = (
        f"sweep of η ({eta['images']} {eta['split']} images, against {eta['against']}): the largest within "
        f"{eta['max_drop_points']:g} points of {eta['before_percent']:.2f} %"
        + ("" if eta["within_max_drop"] else "; none was, so the least harmful")
    )
    return _table(title, ("η", "moves a pixel by", "clean %", "points", ""), rows)


def graphs(manifest: Manifest) -> Iterator[Table | str]:
    """What the graphs are, and the figures of their verification side by side."""
    if not manifest.graphs:
        yield "graphs: none yet: sad-deploy export"
        return
    rows = [(graph.file, graph.precision, graph.target, graph.conv_gradient) for graph in manifest.graphs]
    yield _table("graphs", ("file", "precision", "target", "convolution gradient"), rows)
    columns = {graph.file: graph.verification for graph in manifest.graphs}
    yield figures_table("verified on real images, against PyTorch", columns)


def engines(bundle: Bundle) -> Iterator[Table]:
    """What they were built of and for, if there are some."""
    rows = []
    for engine in bundle.manifest.engines:
        rows.append((engine.file, f"{engine.flavor}, {engine.precision}, from {engine.graph}"))
        rows.append(("", _build_of(bundle.root / engine.sidecar)))
    if rows:
        yield _table("engines", ("file", "built"), rows)


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


def files(bundle: Bundle, changed: Sequence[str]) -> Table:
    """Each with its size, its SHA-256, and whether it is still that."""
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


def _table(title: str, columns: Sequence[str], rows: Iterable[tuple[str, ...]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    # Text: names and figures are data, never markup.
    table = Table(title=Text(title), title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested figures, each with its own name; lists shortened."""
    for name, value in values.items():
        path = " ".join(filter(None, (prefix, name.replace("_", " "))))
        if isinstance(value, Mapping):
            yield from _flattened(value, path)
        elif isinstance(value, float):
            yield path, f"{value:.6g}"
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield path, text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} bytes"
    return f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MiB"
