"""``sad-deploy calibrate``: a trained network and images in, a calibrated bundle out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from sad_deploy.attack_config import AttackKind
from sad_deploy.recipe import BATCH_SIZE, BATCHES, SAMPLES, Options, Recipe, resolve
from sad_runtime.bundle import check_destination
from sad_runtime.choices import Normalization
from sad_runtime.extras import require

from .console import interruptible, print_hint, print_note, print_status, print_warning, stderr, stdout

if TYPE_CHECKING:
    from sad_deploy.calibration_job import Outcome
    from sad_deploy.eta import EtaChoice
    from sad_deploy.preparation import Preparation
    from sad_deploy.progress import Report

_NEEDS = ("torch", "torchvision", "safetensors")
_SHOWN_FILES = 3


def calibrate(
    model: Annotated[
        str | None,
        typer.Option(
            help="digits, cifar-resnet18, cifar-resnet50, cifar-wrn32-10, a torchvision classifier, or "
            "package.module:factory.",
            show_default="digits",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="State dict (.safetensors or PyTorch), or a name of torchvision's published weights.",
        ),
    ] = None,
    weights_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Which of several state dicts in the file, for example model_ema.",
            show_default="the usual one",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, cifar10:PATH, cifar100:PATH, or a folder of images.", show_default="digits"
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Class names in the order of the network's outputs, one per line or as JSON.",
            show_default="the folders, sorted",
        ),
    ] = None,
    eta: Annotated[
        str | None,
        typer.Option(
            metavar="auto|FLOAT",
            help="Hybridization ratio; auto takes the largest within --max-drop.",
            show_default="auto",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(min=0, help="Points of clean accuracy that --eta auto may cost.", show_default="2.0"),
    ] = None,
    normalization: Annotated[
        Normalization | None,
        typer.Option(help="How saliency is scaled per image before eta.", show_default="none"),
    ] = None,
    clip: Annotated[
        bool | None,
        typer.Option("--clip/--no-clip", help="Clip x + eta*S to the pixel range.", show_default="no-clip"),
    ] = None,
    attack: Annotated[
        AttackKind | None, typer.Option(help="Adversarial samples to calibrate on.", show_default="pgd")
    ] = None,
    epsilon: Annotated[
        str | None, typer.Option(help="L-infinity radius in pixels of [0, 1].", show_default="8/255")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of PGD.", show_default="10")] = None,
    batches: Annotated[int, typer.Option(min=2, help="Batches to calibrate on.")] = BATCHES,
    batch_size: Annotated[
        int, typer.Option(min=2, help="Images a batch; fewer than 128 is noisy.")
    ] = BATCH_SIZE,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Side of the network's input in pixels.", show_default="the model's usual one"
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(help="Per channel, separated by commas.", show_default="the model's usual one"),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(help="Per channel, separated by commas.", show_default="the model's usual one"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of images and attack.")] = 0,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to calibrate.")] = "auto",
    samples: Annotated[
        int, typer.Option(min=0, help="Held-out images to store in the bundle for verification.")
    ] = SAMPLES,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="The paper's settings: eta 0.8, PGD-20 at 8/255, EMA momentum 0.1."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder of the bundle to write.")] = Path("sad-model"),
) -> None:
    """Calibrate a classifier's BatchNorm statistics for SAD and write a bundle."""
    recipe = resolve(
        Options(
            model=model,
            weights=weights,
            weights_key=weights_key,
            data=data,
            classes=classes,
            eta=eta,
            max_drop=max_drop,
            normalization=normalization,
            clip=clip,
            attack=attack,
            epsilon=epsilon,
            steps=steps,
            batches=batches,
            batch_size=batch_size,
            image_size=image_size,
            mean=mean,
            std=std,
            seed=seed,
            device=device,
            samples=samples,
            paper=paper,
        )
    )
    check_destination(out)
    for module in _NEEDS:
        require(module, extra="calibrate", need="sad-deploy calibrate")
    from sad_deploy.calibration_job import run, save
    from sad_deploy.preparation import prepare

    with interruptible(f"{out} was not touched"), _progress() as report:
        preparation = prepare(recipe, report)
        _print_input(recipe, preparation)
        for note in preparation.notes:
            print_note(note)
        _warn_of_guesses(recipe)
        outcome = run(recipe, preparation, report)
    _print_skipped(outcome)
    if outcome.choice is not None:
        _print_sweep(outcome.choice)
    _print_accuracy(outcome)
    _warn_of_drop(recipe, outcome)
    save(out, recipe, preparation, outcome)
    stdout.print(f"bundle: {out}", markup=False)
    print_hint(f"next: sad-deploy export{'' if out == Path('sad-model') else f' {out}'}")


@contextlib.contextmanager
def _progress() -> Iterator[Report]:
    """One bar a stage on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield report


def _print_input(recipe: Recipe, preparation: Preparation) -> None:
    channels, height, width = preparation.preprocessing.shape
    space = preparation.input_space
    print_status(
        f"{preparation.source.name}, {len(preparation.classes)} classes, input {channels}×{height}×{width}, "
        f"mean {_numbers(space.mean)}, std {_numbers(space.std)}; data {recipe.data}"
    )


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


def _print_skipped(outcome: Outcome) -> None:
    skipped = outcome.data.skipped
    if skipped:
        print_warning(f"{len(skipped)} unusable images skipped: {'; '.join(skipped[:_SHOWN_FILES])}")


def _print_sweep(choice: EtaChoice) -> None:
    plain = choice.plain
    stdout.print(f"clean accuracy by eta ({plain.images} held-out images, against {plain.reference.value})")
    table = Table()
    table.add_column("eta", justify="right")
    table.add_column("clean %", justify="right")
    table.add_column("drop", justify="right")
    table.add_column("")
    for row in choice.rows:
        chosen = "chosen" if row.eta == choice.calibration.eta else ""
        table.add_row(f"{row.eta:g}", f"{row.accuracy.percent:.2f}", f"{row.drop:+.2f}", chosen)
    stdout.print(table)


def _print_accuracy(outcome: Outcome) -> None:
    before, after = outcome.before, outcome.after
    stdout.print(
        f"clean accuracy: {before.percent:.2f} % before, {after.percent:.2f} % after, "
        f"with eta {outcome.calibration.eta:g} "
        f"({before.images} {outcome.split} images, against {before.reference.value})",
        soft_wrap=True,
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
