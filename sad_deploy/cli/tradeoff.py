"""``sad-deploy tradeoff``: η against clean accuracy and what a fast attack that knows the defence leaves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from sad_deploy.recipe import Update, resolve
from sad_runtime.choices import Norm
from sad_runtime.extras import require
from sad_runtime.files import written_whole

from .calibrate import NEEDS
from .calibrate_options import CalibrationOptions
from .calibrate_report import print_input
from .console import interruptible, print_hint, print_json, print_result, print_status
from .options import RESULT, AsJson, expanded
from .progress import progress

TEST = "Test"
_STEPS = 20


@dataclasses.dataclass(frozen=True)
class TradeoffOptions:
    """What is attacked, and how."""

    images: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many are attacked.", rich_help_panel=TEST)
    ] = 100
    test_epsilon: Annotated[
        str | None,
        typer.Option(
            metavar="E",
            help="How far the attack may move a pixel, in [0, 1].",
            show_default="the calibration's --epsilon",
            rich_help_panel=TEST,
        ),
    ] = None
    test_steps: Annotated[
        int, typer.Option(metavar="N", min=1, help="Steps of APGD.", rich_help_panel=TEST)
    ] = _STEPS
    norm: Annotated[
        Norm, typer.Option(metavar="|".join(Norm), help="How that is measured.", rich_help_panel=TEST)
    ] = Norm.LINF
    update: Annotated[
        Update,
        typer.Option(
            metavar="|".join(Update),
            help="What the statistics are of: images with saliency; adversarial ones without (section 4.6 of "
            "the paper); none keeps those that were trained (Table 5).",
            rich_help_panel=TEST,
        ),
    ] = Update.SALIENT


@expanded
def tradeoff(
    *,
    options: CalibrationOptions,
    test: TradeoffOptions,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw it: .png, .svg or .pdf.", show_default=False, rich_help_panel=RESULT
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the course of eta: clean accuracy, and what a fast attack that knows the defence leaves.

    One calibration serves all eta; nothing is written. The attack is weak and quick: choose by its course,
    and let evaluate say what is left in the worst case.
    """
    recipe = resolve(options.options())
    for module in (*NEEDS, "onnx"):
        require(module, extra="calibrate", need="sad-deploy tradeoff")
    from sad_deploy.evaluation.threat import Threat, parse_epsilon
    from sad_deploy.plotting import check_plot

    if plot is not None:
        check_plot(plot)
    epsilon = recipe.attack.epsilon if test.test_epsilon is None else parse_epsilon(test.test_epsilon)
    threat = Threat(epsilon, test.norm)
    from sad_deploy.preparation import prepare
    from sad_deploy.tradeoff import run
    from sad_deploy.tradeoff_report import as_dict, draw, lines

    with interruptible("nothing was written"), progress() as report:
        preparation = prepare(recipe)
        print_input(recipe, preparation)
        found, measured = run(
            recipe,
            preparation,
            threat=threat,
            update=test.update,
            count=test.images,
            steps=test.test_steps,
            report=report,
        )
    name = preparation.source.name
    if plot is not None:
        with written_whole(plot, option="--plot", regular=False) as draft:
            draft.write_bytes(draw(found, measured, name, plot))
        print_status(f"plot: {plot}")
    if as_json:
        print_json(as_dict(found, measured, name, recipe))
    else:
        for line in lines(found, measured, name):
            print_result(line)
    print_hint("not the worst case: calibrate --eta ETA, export, and run sad-deploy evaluate on the file")
