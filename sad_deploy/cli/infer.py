"""``sad-deploy infer``: images in, one row each out."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sad_runtime.errors import UserError
from sad_runtime.result_format import ResultFormat

from .bare_options import BareChoices
from .console import (
    EXIT_INTERRUPTED,
    EXIT_SOME_IMAGES_FAILED,
    print_error,
    print_hint,
    print_json,
    print_note,
    print_result,
    print_status,
    print_warning,
)
from .infer_options import BundleFolder, Out, RunChoices, SourceArgument, SummaryAsJson
from .options import DEFAULT_BUNDLE, expanded
from .running import drawn_progress, resume_command, say_backend

if TYPE_CHECKING:
    from sad_runtime.labelled import RunScores
    from sad_runtime.results import Summary
    from sad_runtime.run import JournaledRun

_HISTOGRAM_CLASSES = 10


@expanded
def infer(
    source: SourceArgument,
    *,
    bundle: BundleFolder = DEFAULT_BUNDLE,
    out: Out = None,
    bare: BareChoices,
    choices: RunChoices,
    as_json: SummaryAsJson = False,
) -> None:
    """Classify images with the defence, one row each. A bad image is an error row and exit code 3."""
    options = choices.options()
    if source[0].endswith(".onnx"):
        bundle, *source = Path(source[0]), *source[1:]
        if not source:
            raise UserError(f"what should {bundle} classify?", hint=f"sad-deploy infer {bundle} images/")
    from sad_runtime.results import STDOUT, EarlierRunError
    from sad_runtime.run import JournaledRun

    out = out or f"predictions.{options.table or ResultFormat.JSONL}"
    if as_json and out == STDOUT:
        raise UserError("--json and --out - both write to standard output", hint="give --out a file's name")
    try:
        run = JournaledRun(
            source,
            bare.opened(bundle),
            out,
            options,
            on_message=print_warning,
            on_loaded=lambda classifier: say_backend(classifier, options.precision),
        )
    except EarlierRunError as error:
        if error.can_resume:
            error.hint = f"resume with: {resume_command()}; or replace them with --overwrite"
        raise
    with run, _kept_on_failure(run):
        with drawn_progress(run) as batches:
            for _ in batches:
                pass
        summary = run.finish()
    written = {"results": out, "overlays": options.saliency, "report": options.report}
    if as_json:
        places = {what: where and str(where) for what, where in written.items()}
        scored = {} if run.scores is None or run.scores.problem else {"accuracy": run.scores.as_dict()}
        print_json(_as_json(summary) | places | scored)
    _print(summary)
    for what, where in written.items():
        if where and where != STDOUT:
            print_status(f"{what}: {where}")
    if run.scores is not None:
        _say_scores(run.scores, str(bundle), as_table=not (as_json or out == STDOUT))
    if summary.failures or summary.skipped_failures:
        raise typer.Exit(EXIT_SOME_IMAGES_FAILED)


@contextlib.contextmanager
def _kept_on_failure(run: JournaledRun) -> Iterator[None]:
    """Say how to resume, however the run is cut short."""
    try:
        yield
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        raise typer.Exit from None
    except KeyboardInterrupt:
        print_error(f"interrupted after {_count(run.summary.done, 'image')}")
        if run.kept_in is not None:
            print_hint(f"resume with: {resume_command()}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except UserError as error:
        if run.kept_in is not None:
            kept = f"finished rows are kept in {run.kept_in}; resume with: {resume_command()}"
            error.hint = f"{error.hint}; {kept}" if error.hint else kept
        raise


def _print(summary: Summary) -> None:
    from sad_runtime.sources import describe_left_out

    print_status(f"{_count(summary.done, 'image')} in {summary.seconds:.1f} s ({summary.rate:.1f}/s)")
    if summary.skipped is not None:
        print_status(f"{_count(summary.skipped, 'image')} had a row already")
    if summary.classes:
        named = [f"{name}: {n}" for name, n in _by_name(summary.classes)[:_HISTOGRAM_CLASSES]]
        rest = len(summary.classes) - len(named)
        print_status("classes: " + ", ".join(named) + (f" and {rest} more" if rest else ""))
    for code, n in summary.failures.most_common():
        print_warning(f"{_count(n, 'image')} failed: {code}, for example {summary.examples[code]}")
    if summary.skipped_failures:
        failed = _count(summary.skipped_failures, "image")
        print_warning(f"{failed} had failed before; --retry-errors tries again")
    if summary.left_out:
        print_status(describe_left_out(summary.left_out))


def _say_scores(scores: RunScores, what: str, *, as_table: bool) -> None:
    """How right the answers are.

    Raises:
        UserError: The labels cannot be right; rows are written all the same.
    """
    if problem := scores.problem:
        raise UserError(problem[0], hint=problem[1])
    if scores.unlabelled:
        number = _count(scores.unlabelled, "image")
        print_warning(f"{number} without a label, for example {scores.example}")
    if as_table:
        from .score_lines import paired_line, score_lines

        for line in score_lines(
            f"{what} · {_count(len(scores), 'image')}", scores.networks, scores.labels.classes
        ):
            print_result(line)
        if (paired := scores.paired) is not None:
            print_result("")
            print_result(paired_line(paired))
            print_note(
                "the network before calibration is not in a run: sad-deploy evaluate --clean measures it"
            )


def _as_json(summary: Summary) -> dict[str, Any]:
    return {
        "images": summary.done,
        "seconds": summary.seconds,
        "classes": [
            {"label": label, "class": name, "images": n} for (label, name), n in summary.classes.most_common()
        ],
        "failures": dict(summary.failures.most_common()),
        "failure_examples": summary.examples,
        "skipped": summary.skipped,
        "skipped_failures": summary.skipped_failures,
        "left_out": dict(summary.left_out.most_common()),
    }


def _by_name(classes: Counter[tuple[int, str]]) -> list[tuple[str, int]]:
    """Classes by number; those that share a name are told apart by their label."""
    names = Counter(name for _, name in classes)
    return [
        (name if names[name] == 1 else f"{name} (label {label})", n)
        for (label, name), n in classes.most_common()
    ]


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
