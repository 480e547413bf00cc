"""``sad-deploy benchmark``: how fast a bundle is on this machine, and what the defence costs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sad_runtime.choices import BackendChoice
from sad_runtime.errors import MissingExtraError
from sad_runtime.extras import require
from sad_runtime.files import Destination, written_whole

from .console import (
    EXIT_SOME_IMAGES_FAILED,
    interruptible,
    print_hint,
    print_status,
    print_warning,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from rich.table import Table

    from sad_runtime.benchmark import Benchmark, Run
    from sad_runtime.benchmark.run import Progress, SinglePass

_NONE = "–"


def benchmark(
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Images, as for infer; without any, photographs are made up.",
            show_default=False,
        ),
    ] = None,
    bundle: Annotated[Path, typer.Option(metavar="DIR", help="The bundle to measure.")] = Path("sad-model"),
    backend: Annotated[
        list[BackendChoice] | None,
        typer.Option(help="Where to run; may be repeated.", show_default="all that run here"),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Of the graph; may be repeated.", show_default="all in the bundle"),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Images the backend gets at once; may be repeated.",
            show_default="1, 8, 32",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Decoding threads.", show_default="the cores available"),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(min=0, metavar="S", help="Time for each measurement; at least three rounds are made."),
    ] = 2.0,
    images: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most images used; they are repeated as needed.")
    ] = 256,
    out: Annotated[Path, typer.Option(metavar="FILE", help="All figures as JSON.")] = Path("benchmark.json"),
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw them: .png, .svg or .pdf.", show_default=False)
    ] = None,
) -> None:
    """Measure decoding, the model with and without the defence, and all of it together, on this machine."""
    from sad_runtime.benchmark import Options
    from sad_runtime.benchmark import benchmark as measure
    from sad_runtime.benchmark.plot import check_plot, draw
    from sad_runtime.sources import open_sources

    Destination.of(out).check()
    if plot is not None:
        check_plot(plot)
        Destination.of(plot, option="--plot").check()
    options = Options(
        backends=tuple(backend or ()),
        precisions=tuple(precision or ()),
        batch_sizes=tuple(batch or ()),
        workers=workers,
        seconds=seconds,
        images=images,
    )
    with contextlib.ExitStack() as stack:
        written = [path for path in (out, plot) if path is not None]
        items = stack.enter_context(open_sources(source, exclude=written)) if source else None
        single_pass = _single_pass()
        progress = stack.enter_context(_progress())
        stack.enter_context(interruptible("no figures were written"))
        result = measure(bundle, items, options, single_pass=single_pass, progress=progress)
    with written_whole(out, regular=False) as draft:
        draft.write_text(result.to_json(), encoding="utf-8")
    if plot is not None:
        with written_whole(plot, option="--plot", regular=False) as draft:
            draft.write_bytes(draw(result, plot))
    _print(result)
    for what, where in (("figures", out), ("plot", plot)):
        if where is not None:
            print_status(f"{what}: {where}")
    if result.images.failed:
        raise typer.Exit(EXIT_SOME_IMAGES_FAILED)


def _single_pass() -> SinglePass | None:
    """Cuts the undefended classifier out of a graph; ``None``, and a word about it, where onnx is missing."""
    try:
        for module in ("onnx", "onnx_ir"):
            require(module, extra="benchmark", need="measuring the single pass, without the defence,")
    except MissingExtraError as error:
        print_warning(f"{error.message}; it is left out")
        if error.hint:
            print_hint(error.hint)
        return None
    from sad_export.first_pass import first_pass

    return lambda path: first_pass(path).SerializeToString()


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """A bar that is drawn only between two measurements: one that moves by itself would be measured, too."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        console=stderr,
        transient=True,
        auto_refresh=False,
        disable=not stderr.is_terminal,
    )

    def show(done: int, total: int, what: str) -> None:
        if stderr.is_terminal:
            bar.update(task, completed=done, total=total, description=what, refresh=True)
        else:
            print_status(f"{done + 1}/{total} {what}")

    with bar:
        task = bar.add_task("", total=None)
        yield show


def _print(result: Benchmark) -> None:
    machine, bundle, images = result.machine, result.bundle, result.images
    size = "×".join(map(str, bundle["input_shape"]))
    gpus = "".join(f", {gpu}" for gpu in machine["gpus"])
    kind = "made-up photographs, JPEG 500×375" if images.made_up else "images"
    for what, text in (
        ("machine", f"{machine['processor']}, {machine['cores']} cores{gpus}"),
        ("bundle", f"{bundle['path']}: {bundle['model']}, {size}"),
        ("images", f"{images.used} {kind}"),
    ):
        stdout.print(f"{what}: {text}", markup=False, soft_wrap=True)
    for table in (_decode(result), _model(result.runs), _end_to_end(result.runs)):
        stdout.print(table)
    for entry in result.not_measured:
        stdout.print(
            f"not measured: {entry.backend} {entry.precision}: {entry.reason}", markup=False, soft_wrap=True
        )
    if images.failed:
        failed = ", ".join(f"{n} {code}" for code, n in images.failed.items())
        print_warning(f"images left out: {failed}, for example {images.failed_example}")


def _decode(result: Benchmark) -> Table:
    table = _table("decode only", ("workers", "images/s", "CPU ms\nan image"))
    decode = result.decode
    table.add_row(str(decode.workers), _number(decode.images_per_second), _number(decode.cpu_ms_per_image))
    return table


def _model(runs: tuple[Run, ...]) -> Table:
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
                _number(figures.latency_ms_median),
                _number(figures.latency_ms_p95),
                _number(figures.images_per_second),
                _number(figures.cpu_ms_per_image),
                *(_NONE if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            )
    return table


def _end_to_end(runs: tuple[Run, ...]) -> Table:
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
            _number(figures.images_per_second),
            _number(figures.cpu_ms_per_image),
            f"{figures.cpu_ratio_to_decode_plus_model:.2f}",
        )
    return table


def _table(title: str, figures: tuple[str, ...], names: tuple[str, ...] = ()) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name)
    for name in figures:
        table.add_column(name, justify="right")
    return table


def _number(value: float) -> str:
    """Three digits, and all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
