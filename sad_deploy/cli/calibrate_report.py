"""What ``sad-deploy calibrate`` prints: what it was given, what came of it, and advice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sad_runtime.choices import Normalization

from .console import print_hint, print_note, print_result, print_status, print_warning
from .progress import duration

if TYPE_CHECKING:
    from sad_deploy.calibration_job import Outcome
    from sad_deploy.eta import EtaChoice, EtaRow
    from sad_deploy.preparation import Preparation
    from sad_deploy.recipe import Recipe
    from sad_deploy.running_statistics import Convergence

_SHOWN_FILES = 3


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
    _warn_of_guesses(recipe, assumed=preparation.assumed)


def _warn_of_guesses(recipe: Recipe, *, assumed: bool) -> None:
    """A model of the user's own may expect anything: say what was assumed."""
    from sad_deploy.models.reference import Origin, origin_of

    origin = origin_of(recipe.model)
    if origin is Origin.NAMED or recipe.from_bundle is not None:
        return
    if recipe.weights is None and origin is Origin.FACTORY:
        print_warning(f"no --weights: {recipe.model} is calibrated with the weights that it came with")
    missing = [
        option
        for option, given in (("--image-size", recipe.image_size), ("--mean and --std", recipe.input_space))
        if given is None
    ]
    if assumed and missing:
        print_warning(
            f"no {' and no '.join(missing)}: the values above are assumed; give those it was trained with"
        )


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
        images = "image" if len(skipped) == 1 else "images"
        print_warning(f"{len(skipped)} unusable {images} skipped: {'; '.join(skipped[:_SHOWN_FILES])}")
    print_status(_images_used(outcome))
    _print_convergence(outcome.calibration.convergence)
    if figures:
        if outcome.choice is not None:
            _print_sweep(outcome.choice)
        _print_accuracy(outcome)
    _warn_of_drop(recipe, outcome)


def _images_used(outcome: Outcome) -> str:
    """Which images did what."""
    data = outcome.data
    others = data.validation or data.name
    said = [f"{len(data.calibration):,} of {data.name} calibrated"]
    if outcome.choice is not None:
        chose = "chose eta and measured accuracy" if outcome.chose else "chose eta"
        said.append(f"{len(data.held_out):,} others of {others} {chose}")
    if not outcome.chose:
        said.append(f"{outcome.before.images:,} others of {others} measured accuracy")
    return "images: " + "; ".join(said)


def _print_sweep(choice: EtaChoice) -> None:
    from rich.table import Table

    plain = choice.plain
    print_result(
        f"clean accuracy by eta ({plain.images} held-out images, against {plain.reference.value}), "
        "with 95 % intervals"
    )
    table = Table()
    for title in ("eta", "moves a pixel by", "clean %", "", "drop", ""):
        table.add_column(title, justify="right")
    table.add_column("")
    table.add_row("undefended", "", f"{plain.percent:.2f}", _interval(plain.interval), "", "", "")
    for row in choice.rows:
        table.add_row(
            f"{row.eta:g}",
            f"{row.grey_levels:.2g} of 255" if row.eta else "",
            f"{row.accuracy.percent:.2f}",
            _interval(row.accuracy.interval),
            f"{row.drop:+.2f}",
            _interval(row.comparison.interval, "+"),
            _remark(row, choice),
        )
    print_result(table)
    early = next((row for row in choice.rows if row.batches < choice.chosen.batches), None)
    if early is not None:
        print_result(f"early: given up after {early.batches} batches, by {early.accuracy.images} images")


def _remark(row: EtaRow, choice: EtaChoice) -> str:
    if row.eta == choice.calibration.eta:
        return "chosen" if choice.within_limit else "least harmful"
    if row.eta == 0:
        return "recalibration alone"
    if row.batches < choice.chosen.batches:
        return "early"
    return ""


def _interval(ends: tuple[float, float], sign: str = "") -> str:
    low, high = ends
    return f"{low:{sign}.1f} … {high:{sign}.1f}"


def _print_accuracy(outcome: Outcome) -> None:
    before, first, after = outcome.before, outcome.first_pass.accuracy, outcome.after.accuracy
    print_result(
        f"clean accuracy: {before.percent:.2f} % before, {after.percent:.2f} % after, "
        f"with eta {outcome.calibration.eta:g} "
        f"({before.images} {outcome.split} images, against {before.reference.value})"
    )
    low, high = outcome.after.interval
    print_result(
        f"the drop of {outcome.drop:.2f} points is {low:.1f} to {high:.1f} with 95 % confidence; "
        f"the first pass, recalibrated, has {first.percent:.2f} %"
        + ("; these images chose eta too, so that the drop is a little too small" if outcome.chose else "")
    )
    rate = outcome.calibrated_images / max(outcome.seconds, 1e-9)
    print_status(
        f"calibrated on {outcome.calibrated_images:,} images in {duration(outcome.seconds)}, "
        f"{rate:.0f} images/s"
    )


_NEAR = 0.01
"""Relative standard error of statistics that more batches would not make much better."""


def _print_convergence(found: Convergence | None) -> None:
    """How far the statistics are from those of endless batches of such images."""
    if found is None:
        return
    more = found.more(_NEAR)
    print_status(
        f"statistics converged to within {100 * found.overall:.2g} % ({found.worst}: "
        f"{100 * found.layers[found.worst]:.2g} %)"
        + (f"; {more:,} more batches of other images would bring {100 * _NEAR:g} %" if more else "")
    )


def _warn_of_drop(recipe: Recipe, outcome: Outcome) -> None:
    from sad_deploy.calibration_job import LARGE_DROP
    from sad_deploy.eta_advice import advice
    from sad_deploy.eta_grid import MOVES_NOTHING

    choice = outcome.choice
    if choice is not None and not choice.within_limit:
        if recipe.allow_drop:
            print_warning(
                f"no eta costs at most {choice.max_drop:g} points; the least harmful was taken "
                "as --allow-drop says"
            )
            print_hint("; ".join(advice(choice)[:-1]))
        return
    if choice is not None and choice.calibration.eta == choice.rows[-1].eta:
        print_warning(f"eta {choice.rows[-1].eta:g} ends the sweep; a larger --eta may cost little too")
    eta = outcome.calibration.eta
    if choice is None and eta > 0 and outcome.grey_levels < MOVES_NOTHING:
        print_warning(
            f"eta {eta:g} moves a pixel by {outcome.grey_levels:.2g} of 255 grey levels on average: "
            "saliency does nothing here"
        )
        print_hint("--eta auto tries values that follow the network; or --normalization rms")
    over = choice is not None and outcome.drop > choice.max_drop
    if over or outcome.drop > LARGE_DROP:
        where = ", more than --max-drop, on images that did not choose eta" if over else ""
        print_warning(f"the defence costs {outcome.drop:.1f} points of clean accuracy{where}")
        print_hint("try " + ", ".join(filter(None, _gentler(recipe, outcome))))


def _gentler(recipe: Recipe, outcome: Outcome) -> Iterator[str]:
    """What may cost less than a fixed η did."""
    eta = outcome.calibration.eta
    if eta > 0:
        if recipe.eta is not None:
            yield "--eta auto" + (" without --paper" if recipe.paper else "")
            yield f"a smaller --eta than {eta:g}"
        else:
            yield "a smaller --max-drop"
        yield "" if recipe.normalization is Normalization.RMS else "--normalization rms"
        yield "" if recipe.clip else "--clip"
        yield "more --batches"
    else:  # recalibration alone costs it
        yield f"another --attack than {recipe.attack.kind}"
        yield "fewer or more --batches"
    if outcome.before.percent < 50:
        yield "and check --mean, --std and --weights"
