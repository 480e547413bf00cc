"""What ``sad-deploy calibrate`` prints: its progress, what it was given, what came of it, and advice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sad_runtime.choices import Normalization

from .console import is_quiet, print_hint, print_note, print_result, print_status, print_warning

if TYPE_CHECKING:
    from sad_deploy.calibration_job import Outcome
    from sad_deploy.eta import EtaChoice
    from sad_deploy.preparation import Preparation
    from sad_deploy.progress import Report
    from sad_deploy.recipe import Recipe

_SHOWN_FILES = 3


@contextlib.contextmanager
def progress_bars() -> Iterator[Report]:
    """One bar a stage on stderr."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    from .console import stderr

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, disable=is_quiet()) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield report


def print_input(recipe: Recipe, preparation: Preparation) -> None:
    """The network and the data, and what had to be assumed of them."""
    channels, height, width = preparation.preprocessing.shape
    space = preparation.input_space
    print_status(
        f"{preparation.source.name}, {len(preparation.classes)} classes, input {channels}×{height}×{width}, "
        f"mean {_numbers(space.mean)}, std {_numbers(space.std)}; data {recipe.data}"
    )
    for note in preparation.notes:
        print_note(note)
    _warn_of_guesses(recipe)


def _warn_of_guesses(recipe: Recipe) -> None:
    """A model of the user's own may expect anything: say what was assumed."""
    if ":" not in recipe.model:
        return
    if recipe.weights is None:
        print_warning(f"no --weights: {recipe.model} is calibrated with the weights that it came with")
    assumed = [
        option
        for option, given in (("--image-size", recipe.image_size), ("--mean and --std", recipe.input_space))
        if given is None
    ]
    if assumed:
        missing = " and no ".join(assumed)
        print_warning(f"no {missing}: the values above are assumed; give those it was trained with")


def _numbers(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


def print_outcome(recipe: Recipe, outcome: Outcome, *, figures: bool) -> None:
    """The sweep and the accuracies, unless they go elsewhere, and what should be known of them.

    Args:
        recipe: What was asked for.
        outcome: What came of it.
        figures: Whether to print the sweep and the accuracies.
    """
    if skipped := outcome.data.skipped:
        print_warning(f"{len(skipped)} unusable images skipped: {'; '.join(skipped[:_SHOWN_FILES])}")
    if figures:
        if outcome.choice is not None:
            _print_sweep(outcome.choice)
        _print_accuracy(outcome)
    _warn_of_drop(recipe, outcome)


def _print_sweep(choice: EtaChoice) -> None:
    from rich.table import Table

    plain = choice.plain
    print_result(f"clean accuracy by eta ({plain.images} held-out images, against {plain.reference.value})")
    table = Table()
    table.add_column("eta", justify="right")
    table.add_column("clean %", justify="right")
    table.add_column("drop", justify="right")
    table.add_column("")
    for row in choice.rows:
        chosen = "chosen" if row.eta == choice.calibration.eta else ""
        table.add_row(f"{row.eta:g}", f"{row.accuracy.percent:.2f}", f"{row.drop:+.2f}", chosen)
    print_result(table)


def _print_accuracy(outcome: Outcome) -> None:
    before, after = outcome.before, outcome.after
    print_result(
        f"clean accuracy: {before.percent:.2f} % before, {after.percent:.2f} % after, "
        f"with eta {outcome.calibration.eta:g} "
        f"({before.images} {outcome.split} images, against {before.reference.value})"
    )


def _warn_of_drop(recipe: Recipe, outcome: Outcome) -> None:
    from sad_deploy.calibration_job import LARGE_DROP

    choice = outcome.choice
    if choice is not None and choice.within_limit and choice.calibration.eta == choice.rows[-1].eta:
        print_warning(f"eta {choice.rows[-1].eta:g} ends the sweep; a larger --eta may cost little too")
    if choice is not None and not choice.within_limit:
        print_warning(
            f"no eta of the sweep costs at most {choice.max_drop:g} points; the least harmful was taken"
        )
    if outcome.drop > LARGE_DROP:
        print_warning(f"the defence costs {outcome.drop:.1f} points of clean accuracy")
    elif choice is None or choice.within_limit:
        return
    advice = [
        "--eta auto" + (" without --paper" if recipe.paper else "") if recipe.eta is not None else "",
        f"a smaller --eta than {outcome.calibration.eta:g}",
        "" if recipe.normalization is Normalization.RMS else "--normalization rms",
        "--clip" if not recipe.clip else "",
        "more --batches",
        "and check --mean, --std and --weights" if outcome.before.percent < 50 else "",
    ]
    print_hint("try " + ", ".join(filter(None, advice)))
