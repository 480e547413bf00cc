"""The figures as bars: milliseconds an image by batch size, on a linear axis from 0, under their headline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..plotting import drawn, new_figure
from .figures import Benchmark, Run, three_digits

# Okabe and Ito's colours, which people of all kinds of colour vision can tell apart; light, middle and dark,
# so that they differ in print, too.
_COLORS = {"single pass": "#56B4E9", "two passes": "#0072B2", "end to end": "#E69F00"}
_DECODE_COLOR = "#000000"
_INCHES = (12, 7)
_PANELS_A_ROW = 3
_BAR = 0.27
_ROOM_ABOVE = 1.12


def draw(benchmark: Benchmark, path: Path) -> bytes:
    """Draw the figures, one panel a backend and precision; the panels of a backend have one scale.

    Args:
        benchmark: The figures.
        path: Where the plot will be; only its ending counts.

    Returns:
        The file's contents; 1200×700 pixels as PNG, taller with more than six panels.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    panels: dict[tuple[str, str], list[Run]] = {}
    longest: dict[str, float] = {}
    for run in benchmark.runs:
        panels.setdefault(_panel_of(run), []).append(run)
        longest[run.backend] = max(longest.get(run.backend, 0), *_milliseconds(run).values())
    columns = min(len(panels), _PANELS_A_ROW)
    rows = -(-len(panels) // columns)
    figure = new_figure(_INCHES[0], _INCHES[1] * max(rows, 2) / 2)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    decode = 1000 / benchmark.decode.images_per_second
    for axis, ((backend, precision), runs) in zip(axes, panels.items(), strict=False):
        _panel(axis, runs, decode, fontsize=10 if columns < _PANELS_A_ROW else 8)
        axis.set_title(f"{backend}, {precision}", fontsize=13)
        axis.set_ylim(0, _ROOM_ABOVE * max(longest[backend], decode))
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[: len(panels) : columns]:
        axis.set_ylabel("milliseconds an image", fontsize=12)
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize=12
    )
    figure.suptitle(_title(benchmark), fontsize=14)
    return drawn(figure, path)


def headline(runs: Sequence[Run]) -> tuple[str, str] | None:
    """What the defence costs, and relative to what; ``None`` where no single pass was measured.

    That is the single pass of the bundle's first precision on the first backend, with the largest batch.
    Beside it other precisions "would cost" what their two passes take.
    """
    singles = [(run, run.single_pass) for run in runs if run.single_pass is not None]
    if not singles:
        return None
    first, _ = singles[0]
    reference, single = max(
        (pair for pair in singles if _panel_of(pair[0]) == _panel_of(first)),
        key=lambda pair: pair[0].batch_size,
    )
    costs = {
        run.precision: run.two_passes.latency_ms_median / single.latency_ms_median
        for run in runs
        if (run.backend, run.batch_size) == (reference.backend, reference.batch_size)
    }
    text = f"two passes cost {costs.pop(reference.precision):.1f} ×"
    text += "".join(f"; {precision} would cost {cost:.1f} ×" for precision, cost in costs.items())
    where = f"{reference.backend}, batch {reference.batch_size}"
    return text, f"the time of one {reference.precision} pass ({where})"


def _panel_of(run: Run) -> tuple[str, str]:
    return run.backend, run.precision


def _title(benchmark: Benchmark) -> str:
    """The headline, and under it what it is of."""
    machine = benchmark.machine
    gpus = "".join(f", {gpu}" for gpu in machine["gpus"])
    size = "×".join(map(str, benchmark.bundle["input_shape"]))
    what = f"{benchmark.bundle['model']}, {size}"
    where = f"{machine['processor']}, {machine['cores']} cores{gpus}"
    found = headline(benchmark.runs)
    return f"{found[0]}\nagainst {found[1]}; {what}\n{where}" if found else f"{what}\n{where}"


def _milliseconds(run: Run) -> dict[str, float]:
    """Per image, by what the bar is called; without the single pass where there is none."""
    rates = {} if run.single_pass is None else {"single pass": run.single_pass.images_per_second}
    rates |= {
        "two passes": run.two_passes.images_per_second,
        "end to end": run.end_to_end.images_per_second,
    }
    return {name: 1000 / rate for name, rate in rates.items()}


def _panel(axis: Any, runs: Sequence[Run], decode: float, *, fontsize: int) -> None:
    """Bars of one backend and precision, grouped by batch size."""
    names = list(_milliseconds(runs[0]))
    for i, name in enumerate(names):
        values = [_milliseconds(run)[name] for run in runs]
        offset = (i - (len(names) - 1) / 2) * _BAR
        bars = axis.bar(
            [group + offset for group in range(len(runs))],
            values,
            width=_BAR * 0.94,
            label=name,
            color=_COLORS[name],
        )
        axis.bar_label(bars, [three_digits(value) for value in values], fontsize=fontsize, padding=2)
    label = f"decoding only ({three_digits(decode)})"
    axis.axhline(decode, color=_DECODE_COLOR, linestyle="--", linewidth=1.5, label=label)
    axis.set_xticks(range(len(runs)), [str(run.batch_size) for run in runs])
    axis.set_xlim(-0.6, len(runs) - 0.4)
    axis.set_xlabel("batch size (images)", fontsize=12)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
