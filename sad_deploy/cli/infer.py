"""``sad-deploy infer``: images in, one JSON line each out."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sad_runtime.backend_choice import BackendChoice
from sad_runtime.errors import UserError

from .console import print_error, print_hint, print_status, print_warning, stderr

if TYPE_CHECKING:
    from sad_runtime.classifier import Classifier
    from sad_runtime.overlay import OverlayWriter
    from sad_runtime.results import Journal, Row
    from sad_runtime.sources import Images

_EXIT_SOME_IMAGES_FAILED = 3
_EXIT_INTERRUPTED = 130
_HISTOGRAM_CLASSES = 10


def infer(
    source: Annotated[list[str], typer.Argument(help="Folders (read recursively), image files or patterns.")],
    bundle: Annotated[Path, typer.Option(help="The bundle to run.")] = Path("sad-model"),
    backend: Annotated[
        BackendChoice,
        typer.Option(help="Where to run it. auto takes the fastest that runs here and says which."),
    ] = BackendChoice.AUTO,
    out: Annotated[
        str, typer.Option(metavar="FILE", help="JSON Lines to write; - for standard output.")
    ] = "predictions.jsonl",
    saliency: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write saliency overlays (PNG) into this folder."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images given to the backend at once.")] = 32,
    top_k: Annotated[int, typer.Option(min=1, help="Classes listed for every image.")] = 5,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Decoding threads.", show_default="the cores available")
    ] = None,
) -> None:
    """Classify images with the defence: one JSON line each; a bad image is an error line and exit code 3."""
    from sad_runtime.classifier import Classifier
    from sad_runtime.overlay import OverlayWriter
    from sad_runtime.results import STDOUT, Journal
    from sad_runtime.sources import find_images

    written = [path for path in (saliency, None if out == STDOUT else out) if path is not None]
    images = find_images(source, exclude=written)
    with Classifier.load(bundle, backend=backend) as classifier:
        print_status(f"backend {classifier.backend_name} ({classifier.backend_reason})")
        overlays = OverlayWriter(saliency, images.base) if saliency else None
        journal = Journal(out)
        summary = _Summary(len(images.paths))
        try:
            with journal:
                _run(classifier, images, journal, summary, overlays, batch_size, top_k, workers)
        except KeyboardInterrupt:
            print_error(f"interrupted after {journal.count} of {len(images.paths)} images")
            if journal.count and journal.writing_to:
                print_hint(f"their rows are kept in {journal.writing_to}; the same command starts afresh")
            raise typer.Exit(_EXIT_INTERRUPTED) from None
        except UserError:
            if journal.count and journal.writing_to:
                print_status(f"the {journal.count} finished rows are kept in {journal.writing_to}")
            raise
        except BrokenPipeError:  # the reader, `head` for example, has seen enough
            sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - or the interpreter's last flush fails
            raise typer.Exit(_EXIT_INTERRUPTED) from None
    summary.print(out if out != STDOUT else None, saliency)
    if summary.failures:
        raise typer.Exit(_EXIT_SOME_IMAGES_FAILED)


def _run(
    classifier: Classifier,
    images: Images,
    journal: Journal,
    summary: _Summary,
    overlays: OverlayWriter | None,
    batch_size: int,
    top_k: int,
    workers: int | None,
) -> None:
    from contextlib import closing

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from sad_runtime.pipeline import classify

    batches = classify(
        classifier, images.paths, batch_size=batch_size, workers=workers, top_k=top_k, overlays=overlays
    )
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
    # closing: an interruption ends the decoding threads here, not whenever the iterator is collected.
    with progress, closing(batches):
        task = progress.add_task("images", total=len(images.paths), rate="")
        for rows in batches:
            journal.write(rows)
            summary.add(rows)
            progress.update(task, advance=len(rows), rate=f"{summary.rate():.0f}/s")


class _Summary:
    """Counts over the rows, printed at the end."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.failures: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.classes: Counter[str] = Counter()
        self.started = time.perf_counter()

    def add(self, rows: list[Row]) -> None:
        self.done += len(rows)
        for row in rows:
            if row.error is None:
                self.classes[row.ranking[0].class_name] += 1
            else:
                self.failures[row.error.code.value] += 1
                self.examples.setdefault(row.error.code.value, f"{row.path}: {row.error.message}")

    def rate(self) -> float:
        """Images a second so far."""
        return self.done / max(time.perf_counter() - self.started, 1e-9)

    def print(self, out: str | None, saliency: Path | None) -> None:
        seconds = time.perf_counter() - self.started
        print_status(f"{_count(self.done, 'image')} in {seconds:.1f} s ({self.rate():.1f}/s)")
        if self.classes:
            named = [f"{name}: {n}" for name, n in self.classes.most_common(_HISTOGRAM_CLASSES)]
            rest = len(self.classes) - len(named)
            print_status("classes: " + ", ".join(named) + (f" and {rest} more" if rest else ""))
        for code, n in self.failures.most_common():
            print_warning(f"{_count(n, 'image')} failed: {code}, for example {self.examples[code]}")
        if out:
            print_status(f"results: {out}")
        if saliency:
            print_status(f"overlays: {saliency}")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
