"""``sad-deploy infer``: images in, one row each out."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sad_runtime.choices import BackendChoice
from sad_runtime.errors import UserError
from sad_runtime.result_format import ResultFormat

from .console import (
    EXIT_INTERRUPTED,
    EXIT_SOME_IMAGES_FAILED,
    print_error,
    print_hint,
    print_status,
    print_warning,
    stderr,
)

if TYPE_CHECKING:
    from sad_runtime.classifier import Classifier
    from sad_runtime.pipeline import Options, Pictures, Pipeline
    from sad_runtime.results import Columns, Output, Summary
    from sad_runtime.sources import Sources

_HISTOGRAM_CLASSES = 10

_RESULTS = "Results"
_PICTURES = "Pictures"
_EARLIER = "Earlier runs"
_RUNNING = "Running"


def infer(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Folders (read recursively), files, patterns, zip or tar archives, @LIST of paths, - for a "
            "list on standard input.",
        ),
    ],
    bundle: Annotated[Path, typer.Option(metavar="DIR", help="The bundle to run.")] = Path("sad-model"),
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="What to write; - for standard output.",
            show_default="predictions.jsonl",
            rich_help_panel=_RESULTS,
        ),
    ] = None,
    table: Annotated[
        ResultFormat | None,
        typer.Option(
            "--format", help="Its format.", show_default="by its ending, else jsonl", rich_help_panel=_RESULTS
        ),
    ] = None,
    top_k: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Classes listed for every image.", rich_help_panel=_RESULTS),
    ] = 5,
    logits: Annotated[
        bool, typer.Option("--logits", help="Also write all logits.", rich_help_panel=_RESULTS)
    ] = False,
    saliency_stats: Annotated[
        bool,
        typer.Option(
            "--saliency-stats",
            help="Also write the saliency's mean |S|, L2 norm and largest |S|.",
            rich_help_panel=_RESULTS,
        ),
    ] = False,
    saliency: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Draw saliency overlays (PNG) here.", rich_help_panel=_PICTURES),
    ] = None,
    saliency_intensity: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="X", help="Colour of the overlays, 0 to 1.", rich_help_panel=_PICTURES
        ),
    ] = 0.75,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write an HTML page to look through results.", rich_help_panel=_PICTURES
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with --out: skip images that have a row and were not changed since.",
            rich_help_panel=_EARLIER,
        ),
    ] = False,
    retry_errors: Annotated[
        bool,
        typer.Option(
            "--retry-errors", help="With --resume: try failed images again.", rich_help_panel=_EARLIER
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an earlier run's results.", rich_help_panel=_EARLIER),
    ] = False,
    backend: Annotated[
        BackendChoice,
        typer.Option(
            help="Where to run; auto takes the fastest that runs here and says which.",
            rich_help_panel=_RUNNING,
        ),
    ] = BackendChoice.AUTO,
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Which of the graphs: fp32, fp16, bf16, int8, fp32-fp16, …",
            rich_help_panel=_RUNNING,
        ),
    ] = "fp32",
    tf32: Annotated[
        bool,
        typer.Option(
            "--tf32",
            help="Let a GPU round products of float32 to TF32: faster, less exact. An engine must have been "
            "built so.",
            rich_help_panel=_RUNNING,
        ),
    ] = False,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Images the backend gets at once. What is more than an engine takes is split, and copied "
            "while it computes.",
            rich_help_panel=_RUNNING,
        ),
    ] = 32,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Decoding threads.",
            show_default="the cores available",
            rich_help_panel=_RUNNING,
        ),
    ] = None,
    fast_decode: Annotated[
        bool,
        typer.Option(
            "--fast-decode",
            help="Decode large JPEGs at lower resolution: faster, pixels differ a little.",
            rich_help_panel=_RUNNING,
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Take the I-th of N equal parts.", rich_help_panel=_RUNNING),
    ] = None,
) -> None:
    """Classify images with the defence, one row each. A bad image is an error row and exit code 3."""
    _check_use(resume, retry_errors, overwrite)
    from sad_runtime.bundle import Bundle
    from sad_runtime.classifier import Classifier
    from sad_runtime.pipeline import Options, Pipeline
    from sad_runtime.results import STDOUT, EarlierRunError, RunRecord, Summary, open_output
    from sad_runtime.sources import Shard, describe_left_out, open_sources

    part = Shard.parse(shard) if shard else None
    out = out or f"predictions.{table or ResultFormat.JSONL}"
    _check_distinct(out, saliency, report)
    written = [path for path in (saliency, report, None if out == STDOUT else out) if path is not None]
    with contextlib.ExitStack() as stack:
        sources = stack.enter_context(open_sources(source, exclude=written, shard=part))
        opened = Bundle.open(bundle)
        try:
            output = stack.enter_context(open_output(out, table=table, resume=resume, overwrite=overwrite))
        except EarlierRunError as error:
            if error.can_resume:
                error.hint = f"go on with: {_resume_command()}; or replace them with --overwrite"
            raise
        if report and output.kept_in is None:
            raise UserError(
                f"--report is made from a result file, but --out is {out}", hint="give --out a file's name"
            )
        classifier = stack.enter_context(
            Classifier.load(opened, backend=backend, precision=precision, tf32=tf32, notice=print_warning)
        )
        print_status(f"backend {classifier.backend_name} ({classifier.backend_reason})")
        if (classifier.backend_name, precision, opened.graph(precision).target) == (
            "cpu",
            "fp32",
            "portable",
        ):
            again = f"sad-deploy export {shlex.quote(str(opened.root))} --target cpu"
            print_hint(f"on CPUs the graph of {again} takes less time")
        decisive = {
            "precision": precision,
            "tf32": tf32 or None,  # earlier versions wrote nothing, and had none
            "format": str(table or ResultFormat.of(out)),
            "top-k": top_k,
            "logits": logits,
            "saliency-stats": saliency_stats,
            "saliency": None if saliency is None else _text(saliency),
            "saliency-intensity": None if saliency is None else saliency_intensity,
            "fast-decode": fast_decode,
            "shard": None if part is None else str(part),
        }
        names = [_text(Path(name)) for name in source]
        record = RunRecord.of(opened, precision, decisive, names, classifier.backend_name)
        for note in output.begin(record):
            print_warning(note)
        finished = output.finished
        pictures: list[Pictures] = []
        page = None
        if saliency:
            from sad_runtime.overlay import OverlayWriter

            pictures.append(OverlayWriter(saliency, sources.base, intensity=saliency_intensity))
        if report:
            from sad_runtime.report import Report

            page = stack.enter_context(
                Report(report, opened.manifest, resume=finished is not None, overwrite=resume or overwrite)
            )
            pictures.append(page)
        options = Options(
            batch_size=batch_size,
            workers=workers,
            top_k=top_k,
            logits=logits,
            saliency_stats=saliency_stats,
            fast_decode=fast_decode,
            pictures=pictures,
        )
        items = sources if finished is None else finished.without(sources, retry_errors=retry_errors)
        summary = Summary()
        with _kept_on_failure(output, summary):
            pipeline = stack.enter_context(Pipeline(classifier, items, options))
            _run(pipeline, sources, output, summary)
            journal = output.complete()
            if page is not None and journal is not None:
                page.finish(
                    journal, seconds=summary.seconds, backend=classifier.backend_name, processed=summary.done
                )
            output.publish(_columns(classifier, options, overlays=saliency is not None))
    _print(summary, output)
    if sources.other_endings:
        print_status(describe_left_out(sources.other_endings))
    for what, where in (("results", out), ("overlays", saliency), ("report", report)):
        if where and where != STDOUT:
            print_status(f"{what}: {where}")
    if summary.failures or (finished is not None and finished.skipped_failures):
        raise typer.Exit(EXIT_SOME_IMAGES_FAILED)


def _check_use(resume: bool, retry_errors: bool, overwrite: bool) -> None:
    """Options that make no sense together."""
    if resume and overwrite:
        raise UserError("--resume goes on with an unfinished run and --overwrite throws it away: choose one")
    if retry_errors and not resume:
        raise UserError("--retry-errors needs --resume", hint="without it every image is tried")


def _check_distinct(out: str, saliency: Path | None, report: Path | None) -> None:
    """Nothing is written over something else that is written."""
    places = {"--out": Path(out), "--saliency": saliency, "--report": report}
    seen: dict[str, str] = {}
    for option, path in places.items():
        if path is not None:
            other = seen.setdefault(os.path.realpath(path), option)
            if other != option:
                raise UserError(f"{other} and {option} are both {path}", hint="give each a place of its own")


def _columns(classifier: Classifier, options: Options, *, overlays: bool) -> Columns:
    """What the rows of a run hold."""
    from sad_runtime.backends.protocol import PLAIN_LOGITS
    from sad_runtime.results import Columns

    classes = len(classifier.manifest.classes)
    return Columns(
        ranked=min(options.top_k, classes),
        plain=PLAIN_LOGITS in classifier.backend.output_names,
        overlays=overlays,
        statistics=options.saliency_stats,
        logits=classes if options.logits else 0,
    )


def _run(pipeline: Pipeline, sources: Sources, output: Output, summary: Summary) -> None:
    """Write rows as they come.

    Raises:
        KeyboardInterrupt: A signal asked for the end; the rows of the batch in flight are written.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("images"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )
    with progress, _ended_by_signals(pipeline.stop):
        task = progress.add_task("images", total=None, rate="")
        if stderr.is_terminal:
            _count_aside(sources, lambda total: progress.update(task, total=total))
        for rows in pipeline:
            output.write(rows)
            summary.add(rows)
            skipped = output.finished.skipped if output.finished else 0
            progress.update(task, completed=summary.done + skipped, rate=f"{summary.rate:.0f}/s")


def _count_aside(sources: Sources, use: Callable[[int | None], None]) -> None:
    """Count in a thread of its own, which may take minutes where images are many or far away."""

    def count() -> None:
        with contextlib.suppress(Exception):  # whatever is wrong with the sources, the run itself will say
            use(sources.count())

    threading.Thread(target=count, name="count", daemon=True).start()


@contextlib.contextmanager
def _ended_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM stop the run in good order, and a second one end it at once.

    Raises:
        KeyboardInterrupt: At the end, if a signal came.
    """
    came = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            stderr.show_cursor(True)
            os._exit(EXIT_INTERRUPTED)
        came = True
        stop()

    before: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _kept_on_failure(output: Output, summary: Summary) -> Iterator[None]:
    """Say how to go on with what was written, however the run is cut short."""
    try:
        yield
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        raise typer.Exit from None
    except KeyboardInterrupt:
        print_error(f"interrupted after {_count(summary.done, 'image')}")
        if _is_kept(output):
            print_hint(f"go on with: {_resume_command()}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except UserError as error:
        if _is_kept(output):
            kept = f"finished rows are kept in {output.kept_in}; go on with: {_resume_command()}"
            error.hint = f"{error.hint}; {kept}" if error.hint else kept
        raise


def _is_kept(output: Output) -> bool:
    return output.kept_in is not None and bool(output.count or output.finished)


def _resume_command() -> str:
    """The command that is running, with --resume."""
    words = [word for word in sys.argv[1:] if word not in ("--resume", "--overwrite")]
    words.insert(words.index("infer") + 1, "--resume")
    return shlex.join(["sad-deploy", *words])


def _print(summary: Summary, output: Output) -> None:
    print_status(f"{_count(summary.done, 'image')} in {summary.seconds:.1f} s ({summary.rate:.1f}/s)")
    if output.finished is not None:
        print_status(f"{_count(output.finished.skipped, 'image')} had a row already")
    if summary.classes:
        named = [f"{name}: {n}" for name, n in _by_name(summary.classes)[:_HISTOGRAM_CLASSES]]
        rest = len(summary.classes) - len(named)
        print_status("classes: " + ", ".join(named) + (f" and {rest} more" if rest else ""))
    for code, n in summary.failures.most_common():
        print_warning(f"{_count(n, 'image')} failed: {code}, for example {summary.examples[code]}")
    if output.finished is not None and output.finished.skipped_failures:
        failed = _count(output.finished.skipped_failures, "image")
        print_warning(f"{failed} had failed before; --retry-errors tries again")


def _by_name(classes: Counter[tuple[int, str]]) -> list[tuple[str, int]]:
    """Classes by number; those that share a name are told apart by their label."""
    names = Counter(name for _, name in classes)
    return [
        (name if names[name] == 1 else f"{name} (label {label})", n)
        for (label, name), n in classes.most_common()
    ]


def _text(path: Path) -> str:
    """A path as text that any file can hold, also if it is not UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
