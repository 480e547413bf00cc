"""The journaled, resumable run: sources in, one row per image in a file that survives whatever ends the run.

``run("photos/", "sad-model", "predictions.jsonl")`` is what ``sad-deploy infer`` does; the same call with
``RunOptions(resume=True)`` completes it after an interruption. :class:`JournaledRun` is its parts, for a
caller who shows progress or stops it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .backends.batch_limit import Notice, ignore
from .backends.protocol import PLAIN_LOGITS
from .backends.server import Server
from .bundle import Bundle
from .bundle.robustness import robustness
from .choices import BackendChoice
from .classifier import Classifier
from .errors import UserError
from .labelled import Labels, RunScores
from .pipeline import Options, Pictures, Pipeline
from .result_format import ResultFormat
from .results import STDOUT, Columns, Row, RunRecord, Summary, open_output, read_rows
from .sources import Shard, Sources, open_sources

Names = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One SOURCE or several, as :func:`~sad_runtime.sources.open_sources` takes them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run classifies, what it writes, and what becomes of an earlier run's rows.

    Attributes:
        table: Format of the result; by default what the file's extension says, else JSON Lines.
        top_k: Classes in each ranking.
        logits: Whether rows hold all logits.
        saliency_stats: Whether rows hold the size of the saliency.
        saliency: Folder in which saliency overlays are drawn; none by default.
        saliency_intensity: Colour of the overlays, 0 to 1.
        report: HTML page to write; none by default.
        labels: What the images show, to say how right the answers are: ``folders``, or a list's file; see
            :meth:`sad_runtime.labelled.Labels.read`. None: nothing is said of that.
        resume: Skip images that have a row and were not changed since.
        retry_errors: With ``resume``, try again the images whose row is an error.
        overwrite: Replace an earlier run's results.
        backend: Where to run.
        precision: Which of the bundle's graphs or engines.
        tf32: Whether a GPU may round products of float32 to TF32.
        device: What the ``openvino`` backend runs on.
        unverified: Run also what does not compute here what the bundle's references say.
        batch_size: Consecutive images given to the backend at once.
        workers: Decoding threads; by default the cores this process may use.
        fast_decode: Whether JPEG is decoded at a lower resolution where that suffices.
        shard: The part of the images to take; all by default.
        zip_encoding: Of names in zip archives that are not marked as UTF-8.
        server: Where the model runs instead of here.

    Raises:
        UserError: Options that contradict each other.
    """

    table: ResultFormat | None = None
    top_k: int = 5
    logits: bool = False
    saliency_stats: bool = False
    saliency: Path | None = None
    saliency_intensity: float = 0.75
    report: Path | None = None
    labels: str | None = None
    resume: bool = False
    retry_errors: bool = False
    overwrite: bool = False
    backend: BackendChoice | str = BackendChoice.AUTO
    precision: str = "fp32"
    tf32: bool = False
    device: str = "CPU"
    unverified: bool = False
    batch_size: int = 32
    workers: int | None = None
    fast_decode: bool = False
    shard: Shard | None = None
    zip_encoding: str | None = None
    server: Server | None = None

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise UserError("--resume completes an unfinished run and --overwrite throws it away: choose one")
        if self.retry_errors and not self.resume:
            raise UserError("--retry-errors needs --resume", hint="without it every image is tried")
        self.classify(())  # checks its part

    def classify(self, pictures: Sequence[Pictures]) -> Options:
        """What of it the pipeline is told."""
        return Options(
            batch_size=self.batch_size,
            workers=self.workers,
            top_k=self.top_k,
            logits=self.logits,
            saliency_stats=self.saliency_stats,
            fast_decode=self.fast_decode,
            pictures=pictures,
        )

    def changing_rows(self, out: str) -> dict[str, Any]:
        """What of it changes rows, by the names on the command line without the dashes."""
        return {
            "precision": self.precision,
            "tf32": self.tf32,
            "format": str(self.table or ResultFormat.of(out)),
            "top-k": self.top_k,
            "logits": self.logits,
            "saliency-stats": self.saliency_stats,
            "saliency": None if self.saliency is None else _text(self.saliency),
            "saliency-intensity": None if self.saliency is None else self.saliency_intensity,
            "fast-decode": self.fast_decode,
            "shard": None if self.shard is None else str(self.shard),
            "zip-encoding": self.zip_encoding,
        }


def run(
    sources: Names,
    bundle: Bundle | str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: RunOptions | None = None,
    *,
    on_message: Notice = ignore,
) -> Summary:
    """Classify images into a file, with a journal beside it until it is whole.

    Whatever ends the run before its time, Ctrl-C, a full disk or a power failure, the finished rows stay in
    ``OUT.partial``; the same call with ``resume`` adds the missing ones.

    Args:
        sources: Folders, files, patterns, archives, ``@LIST``, or ``-``.
        bundle: An opened bundle or its folder.
        out: The result, or ``-`` for standard output.
        options: See :class:`RunOptions`.
        on_message: Called with one line for what deserves a look but stops nothing.

    Returns:
        The run's counts. A bad image is a row with an error and counted in ``failures``.

    Raises:
        EarlierRunError: An earlier run left rows, and neither ``resume`` nor ``overwrite`` was asked for.
        UserError: A source does not exist, the result cannot be written, or rows of an earlier run were made
            differently.
        BundleError: The bundle cannot be used.
        BackendError: The backend cannot run here, or failed on a batch.
    """
    with JournaledRun(sources, bundle, out, options, on_message=on_message) as journaled:
        for _ in journaled:
            pass
        return journaled.finish()


class JournaledRun:
    """A run that has begun: iterate over its batches of rows, which are written by then, and finish it.

    A context manager; leaving it before :meth:`finish` keeps the rows for a run that resumes. For arguments
    and errors see :func:`run`.

    Args:
        on_loaded: Called with the loaded classifier before anything is written.

    Attributes:
        classifier: The loaded bundle.
        sources: The images; may be counted meanwhile.
        summary: Counts so far.
        scores: How right the answers are, at the end; None without labels.
    """

    def __init__(
        self,
        sources: Names,
        bundle: Bundle | str | os.PathLike[str],
        out: str | os.PathLike[str],
        options: RunOptions | None = None,
        *,
        on_message: Notice = ignore,
        on_loaded: Callable[[Classifier], None] = lambda classifier: None,
    ) -> None:
        self._options = options = options or RunOptions()
        names = [sources] if isinstance(sources, (str, os.PathLike)) else sources
        to = os.fspath(out)
        written = _written(to, options)
        with contextlib.ExitStack() as stack:
            self.sources: Sources = stack.enter_context(
                open_sources(names, exclude=written, shard=options.shard, zip_encoding=options.zip_encoding)
            )
            opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
            if opened.plain is not None:
                _refuse_saliency(options)
            self.scores: RunScores | None = None
            if options.labels is not None:
                classes = opened.manifest.classes
                self.scores = RunScores(Labels.read(options.labels, classes, self.sources.base))
            self._output = stack.enter_context(
                open_output(to, table=options.table, resume=options.resume, overwrite=options.overwrite)
            )
            if options.report and self._output.kept_in is None:
                raise UserError(
                    f"--report is made from a result file, but --out is {to}",
                    hint="give --out a file's name",
                )
            self.classifier: Classifier = stack.enter_context(
                Classifier.load(
                    opened,
                    backend=options.backend,
                    precision=options.precision,
                    tf32=options.tf32,
                    device=options.device,
                    unverified=options.unverified,
                    notice=on_message,
                    server=options.server,
                )
            )
            on_loaded(self.classifier)
            record = RunRecord.of(
                opened,
                options.precision,
                options.changing_rows(to),
                [_text(Path(name)) for name in names],
                self.classifier.backend_name,
            )
            for note in self._output.begin(record):
                on_message(note)
            self.summary = Summary()
            self._begin(stack)
            self._stack = stack.pop_all()

    def _begin(self, stack: contextlib.ExitStack) -> None:
        """Open what draws, and start the pipeline."""
        options, finished = self._options, self._output.finished
        pictures: list[Pictures] = []
        self._page = None
        if options.saliency:
            from .overlay import OverlayWriter

            intensity = options.saliency_intensity
            pictures.append(OverlayWriter(options.saliency, self.sources.base, intensity=intensity))
        if options.report:
            from .report import Report

            self._page = stack.enter_context(
                Report(
                    options.report,
                    self.classifier.manifest,
                    resume=finished is not None,
                    overwrite=options.resume or options.overwrite,
                )
            )
            pictures.append(self._page)
        items = (
            finished.remaining(self.sources, retry_errors=options.retry_errors) if finished else self.sources
        )
        self._pipeline = stack.enter_context(Pipeline(self.classifier, items, options.classify(pictures)))
        self._count()

    @property
    def kept_in(self) -> Path | None:
        """Where finished rows stay if the run ends now; ``None`` if there are none, or it has no journal."""
        has_rows = self._output.count or self._output.finished
        return self._output.kept_in if has_rows else None

    def __iter__(self) -> Iterator[list[Row]]:
        for rows in self._pipeline:
            self._output.write(rows)
            self.summary.add(rows)
            self._count()
            if self.scores is not None and self._output.kept_in is None:
                self.scores.add(rows)
            yield rows

    def stop(self) -> None:
        """Let the iteration end after the batch that is in the model. Safe in a signal handler."""
        self._pipeline.stop()

    def finish(self) -> Summary:
        """Give the result its name and write the report, after the last row; the run's counts.

        Raises:
            UserError: One of them cannot be written; rows are kept.
        """
        self._count()
        journal = self._output.complete()
        if self.scores is not None and journal is not None:  # with the rows of the run that is gone on with
            self.scores.add(read_rows(journal, len(self.classifier.manifest.classes)))
        if self._page is not None and journal is not None:
            self._page.finish(
                journal,
                seconds=self.summary.seconds,
                backend=self.classifier.backend_name,
                processed=self.summary.done,
                robust=robustness(self.classifier.bundle),
                scores=self.scores,
                is_defended=self.classifier.bundle.plain is None,
            )
        self._output.publish(self._columns())
        return self.summary

    def _count(self) -> None:
        self.summary.left_out = self.sources.other_endings
        if (finished := self._output.finished) is not None:
            self.summary.skipped = finished.skipped
            self.summary.skipped_failures = finished.skipped_failures

    def _columns(self) -> Columns:
        classes, options = len(self.classifier.manifest.classes), self._options
        return Columns(
            ranked=min(options.top_k, classes),
            plain=PLAIN_LOGITS in self.classifier.backend.output_names,
            overlays=options.saliency is not None,
            statistics=options.saliency_stats,
            logits=classes if options.logits else 0,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def _written(out: str, options: RunOptions) -> list[str | Path]:
    """What a run writes, of which nothing is read.

    Raises:
        UserError: Something would be written over something else.
    """
    places = {"--out": Path(out), "--saliency": options.saliency, "--report": options.report}
    seen: dict[str, str] = {}
    for option, path in places.items():
        if path is not None:
            if option == "--saliency" and path.exists() and not path.is_dir():
                raise UserError(f"{path} is not a folder; {option} names one")
            if option != "--saliency" and path.is_dir():
                raise UserError(f"{path} is a folder; {option} names a file")
            other = seen.setdefault(os.path.realpath(path), option)
            if other != option:
                raise UserError(f"{other} and {option} are both {path}", hint="give each another place")
    return [
        path for option, path in places.items() if path is not None and (option, out) != ("--out", STDOUT)
    ]


def _refuse_saliency(options: RunOptions) -> None:
    """Refuse what is drawn or counted of the saliency, for a classifier that has none.

    Raises:
        UserError: It was asked for.
    """
    asked = {"--saliency": options.saliency is not None, "--saliency-stats": options.saliency_stats}
    if given := [option for option, is_given in asked.items() if is_given]:
        raise UserError(
            f"--plain runs a classifier without saliency, which {' and '.join(given)} shows",
            hint="sad-deploy defend writes a graph that has it",
        )


def _text(path: Path) -> str:
    """A path as text that any file can hold, also if it is not UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")
