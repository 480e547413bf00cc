"""The figures as bars: images a second by batch size, and the rate of decoding as a line."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import UserError
from ..extras import require
from .figures import Benchmark, Run

FORMATS = ("png", "svg", "pdf")
"""By the file's ending."""

# Okabe and Ito's colours, which people of all kinds of colour vision can tell apart; light, middle and dark,
# so that they differ in print, too.
_COLORS = {"single pass": "#56B4E9", "two passes": "#0072B2", "end to end": "#E69F00"}
_DECODE_COLOR = "#D55E00"
_INCHES = (12, 7)
_DOTS_PER_INCH = 100
_PANELS_A_ROW = 3
_BAR = 0.27


def check_plot(path: Path) -> None:
    """Find out whether a plot can be drawn.

    Raises:
        UserError: The file's ending is none of :data:`FORMATS`.
        MissingExtraError: matplotlib is not installed.
    """
    if _format(path) not in FORMATS:
        raise UserError(
            f"no plot can be written to {path}: its ending must be one of "
            f"{', '.join('.' + ending for ending in FORMATS)}"
        )
    _matplotlib()


def draw(benchmark: Benchmark, path: Path) -> bytes:
    """Draw the figures, one panel a backend and precision.

    Args:
        benchmark: The figures.
        path: Where the plot will be; only its ending counts.

    Returns:
        The file's contents; 1200×700 pixels as PNG, taller with more than six panels.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    panels: dict[str, list[Run]] = {}
    for run in benchmark.runs:
        panels.setdefault(f"{run.backend}, {run.precision}", []).append(run)
    columns = min(len(panels), _PANELS_A_ROW)
    rows = -(-len(panels) // columns)
    figure = _matplotlib().Figure(
        figsize=(_INCHES[0], _INCHES[1] * max(rows, 2) / 2), dpi=_DOTS_PER_INCH, layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    # The rates lie orders of magnitude apart: on a linear scale the slow ones would not be seen.
    rates = [benchmark.decode.images_per_second]
    rates += [rate for run in benchmark.runs for rate in _rates(run).values()]
    axes[0].set_yscale("log")
    axes[0].set_ylim(min(rates) / 2, max(rates) * 2)
    axes[0].yaxis.set_major_formatter("{x:g}")
    for axis, (title, runs) in zip(axes, panels.items(), strict=False):
        _panel(axis, runs, benchmark.decode.images_per_second, fontsize=10 if columns < _PANELS_A_ROW else 8)
        axis.set_title(title, fontsize=13)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[: len(panels) : columns]:
        axis.set_ylabel("images per second (logarithmic)", fontsize=12)
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize=12
    )
    size = "×".join(map(str, benchmark.bundle["input_shape"]))
    machine = benchmark.machine
    gpus = "".join(f", {gpu}" for gpu in machine["gpus"])
    figure.suptitle(
        f"{benchmark.bundle['model']}, {size}\n{machine['processor']}, {machine['cores']} cores{gpus}",
        fontsize=14,
    )
    file = io.BytesIO()
    figure.savefig(file, format=_format(path))
    return file.getvalue()


def _rates(run: Run) -> dict[str, float]:
    """Images a second, by what the bar is called; without the single pass where there is none."""
    rates = {}
    if run.single_pass is not None:
        rates["single pass"] = run.single_pass.images_per_second
    rates["two passes"] = run.two_passes.images_per_second
    rates["end to end"] = run.end_to_end.images_per_second
    return rates


def _panel(axis: Any, runs: Sequence[Run], decode: float, *, fontsize: int) -> None:
    """Bars of one backend and precision, grouped by batch size."""
    names = list(_rates(runs[0]))
    for i, name in enumerate(names):
        values = [_rates(run)[name] for run in runs]
        offset = (i - (len(names) - 1) / 2) * _BAR
        bars = axis.bar(
            [group + offset for group in range(len(runs))],
            values,
            width=_BAR * 0.94,
            label=name,
            color=_COLORS[name],
        )
        axis.bar_label(bars, [_number(value) for value in values], fontsize=fontsize, padding=2)
    label = f"decoding only ({_number(decode)})"
    axis.axhline(decode, color=_DECODE_COLOR, linestyle="--", linewidth=2, label=label)
    axis.set_xticks(range(len(runs)), [str(run.batch_size) for run in runs])
    axis.set_xlim(-0.6, len(runs) - 0.4)
    axis.set_xlabel("batch size (images)", fontsize=12)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _number(value: float) -> str:
    """Three digits, and all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _format(path: Path) -> str:
    return path.suffix.removeprefix(".").lower()


def _matplotlib() -> ModuleType:
    for module in ("matplotlib", "matplotlib.figure"):  # the first is the one to name
        imported = require(module, extra="benchmark", need="a plot")
    return imported
