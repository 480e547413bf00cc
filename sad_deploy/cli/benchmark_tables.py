"""What ``sad-deploy benchmark`` prints for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from ..benchmark.figures import three_digits

if TYPE_CHECKING:
    from ..benchmark import Benchmark, Run

_NONE = "–"


def lines_and_tables(result: Benchmark) -> Iterator[str | Table]:
    """Machine, bundle and images, then the figures, then what was not measured."""
    machine, bundle, images = result.machine, result.bundle, result.images
    size = "×".join(map(str, bundle["input_shape"]))
    gpus = "".join(f", {gpu}" for gpu in machine["gpus"])
    kind = "made-up photographs, JPEG 500×375" if images.made_up else "images"
    yield f"machine: {machine['processor']}, {machine['cores']} cores{gpus}"
    yield f"bundle: {bundle['path']}: {bundle['model']}, {size}"
    yield f"images: {images.used} {kind}"
    yield _decode(result)
    yield _model(result.runs)
    yield _end_to_end(result.runs)
    for entry in result.not_measured:
        yield f"not measured: {entry.backend} {entry.precision}: {entry.reason}"


def _decode(result: Benchmark) -> Table:
    table = _table("decode only", ("workers", "images/s", "CPU ms\nan image"))
    decode = result.decode
    table.add_row(
        str(decode.workers), three_digits(decode.images_per_second), three_digits(decode.cpu_ms_per_image)
    )
    return table


def _model(runs: Sequence[Run]) -> Table:
    table = _table(
        "model only",
        ("median\nms", "p95\nms", "images/s", "CPU ms\nan image", "×\ntime", "×\nCPU"),
        ("backend", "precision", "batch", "passes"),
    )
    for run in runs:
        where = (run.backend, run.precision, str(run.batch_size))
        for passes, figures in (("1", run.single_pass), ("2", run.two_passes)):
            if figures is None:
                table.add_row(*where, passes, *[_NONE] * 6)
                continue
            ratios = (run.latency_ratio, run.cpu_ratio) if passes == "2" else (1.0, 1.0)
            table.add_row(
                *where,
                passes,
                three_digits(figures.latency_ms_median),
                three_digits(figures.latency_ms_p95),
                three_digits(figures.images_per_second),
                three_digits(figures.cpu_ms_per_image),
                *(_NONE if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            )
    return table


def _end_to_end(runs: Sequence[Run]) -> Table:
    table = _table(
        "end to end: files in, rows out",
        ("images/s", "CPU ms\nan image", "× CPU of decode\n+ two passes"),
        ("backend", "precision", "batch"),
    )
    for run in runs:
        figures = run.end_to_end
        table.add_row(
            run.backend,
            run.precision,
            str(run.batch_size),
            three_digits(figures.images_per_second),
            three_digits(figures.cpu_ms_per_image),
            f"{figures.cpu_ratio_to_decode_plus_model:.2f}",
        )
    return table


def _table(title: str, figures: tuple[str, ...], names: tuple[str, ...] = ()) -> Table:
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name)
    for name in figures:
        table.add_column(name, justify="right")
    return table
