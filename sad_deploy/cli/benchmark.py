"""``sad-deploy benchmark``: how fast a bundle is on this machine, and what the defence costs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sad_runtime.errors import MissingExtraError
from sad_runtime.extras import require
from sad_runtime.files import Destination, written_whole

from .benchmark_options import BundleFolder, MeasuringChoices, Out, Plot, SourceArgument
from .console import (
    EXIT_SOME_IMAGES_FAILED,
    interruptible,
    print_hint,
    print_json,
    print_result,
    print_status,
    print_warning,
)
from .options import DEFAULT_BUNDLE, AsJson, expanded

if TYPE_CHECKING:
    from ..benchmark import Benchmark, Progress, SinglePass


@expanded
def benchmark(
    source: SourceArgument = None,
    *,
    bundle: BundleFolder = DEFAULT_BUNDLE,
    choices: MeasuringChoices,
    out: Out = Path("benchmark.json"),
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Measure decoding, the model with and without the defence, and all of it together, on this machine."""
    from sad_runtime.sources import open_sources

    from ..benchmark import benchmark as measure
    from ..benchmark.plot import draw
    from ..plotting import check_plot

    Destination.of(out).check()
    if plot is not None:
        check_plot(plot)
        Destination.of(plot, option="--plot").check()
    options = choices.options()
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
    _print(result, as_json=as_json)
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

    from .console import stderr

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


def _print(result: Benchmark, *, as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(result))
    else:
        from .benchmark_tables import lines_and_tables

        for part in lines_and_tables(result):
            print_result(part)
    if failed := result.images.failed:
        counts = ", ".join(f"{n} {code}" for code, n in failed.items())
        print_warning(f"images left out: {counts}, for example {result.images.failed_example}")
