"""``sad-deploy calibrate``: a trained network and images in, a calibrated bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sad_deploy.recipe import resolve
from sad_runtime.extras import require

from .calibrate_options import CalibrateOptions
from .calibrate_report import print_input, print_outcome
from .console import interruptible, print_hint, print_json, print_result
from .options import DEFAULT_BUNDLE, RESULT, AsJson, expanded
from .progress import progress

NEEDS = ("torch", "torchvision", "safetensors")


@expanded
def calibrate(
    *,
    options: CalibrateOptions,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder of the bundle to write.", rich_help_panel=RESULT),
    ] = DEFAULT_BUNDLE,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace a bundle that was exported, with its graphs and engines.",
            rich_help_panel=RESULT,
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Calibrate a classifier's BatchNorm statistics for SAD and write a bundle.

    Without --eta, values from one that moves no pixel to one that breaks everything are tried on held-out
    images, and the largest that costs little accuracy is taken. If none does, nothing is written.
    """
    recipe = resolve(options.options())
    from sad_runtime.bundle import check_destination

    check_destination(out)
    for module in NEEDS:
        require(module, extra="calibrate", need="sad-deploy calibrate")
    if not overwrite:
        _refuse_exported(out)
        _refuse_own(out, options.from_bundle)
    from sad_deploy.calibration_job import run
    from sad_deploy.eta_advice import refusal
    from sad_deploy.preparation import prepare
    from sad_deploy.provenance import provenance, save

    with interruptible(f"{out} was not touched"), progress() as report:
        preparation = prepare(recipe)
        print_input(recipe, preparation)
        outcome = run(recipe, preparation, report)
    print_outcome(recipe, outcome, figures=not as_json)
    if outcome.choice is not None and not outcome.choice.within_limit and not recipe.allow_drop:
        raise refusal(outcome.choice)
    save(out, recipe, preparation, outcome)
    if as_json:
        eta = outcome.calibration.eta
        print_json({"bundle": str(out), "eta": eta, "calibration": provenance(recipe, preparation, outcome)})
    else:
        print_result(f"bundle: {out}")
    print_hint(f"next: sad-deploy export{'' if out == DEFAULT_BUNDLE else f' {out}'}")


def _refuse_own(out: Path, source: str | None) -> None:
    """A bundle calibrated for other images is another one.

    Raises:
        UserError: It would replace the one that it comes from.
    """
    from sad_runtime.errors import UserError

    if source is not None and out.resolve() == Path(source).resolve():
        raise UserError(
            f"{out} would be replaced by what comes from it",
            hint="--out names another folder, or --overwrite",
        )


def _refuse_exported(out: Path) -> None:
    """A calibrated bundle is quickly made again, graphs and engines are not.

    Raises:
        UserError: There is a bundle that holds some.
    """
    from sad_runtime.bundle import Bundle
    from sad_runtime.errors import BundleError, UserError

    try:
        manifest = Bundle.open(out).manifest
    except BundleError:  # nothing there, or nothing that could be used
        return
    made = [graph.file for graph in manifest.graphs] + [engine.file for engine in manifest.engines]
    if made:
        raise UserError(
            f"{out} was exported: {', '.join(made)} would be lost",
            hint="--overwrite replaces it; --out names another folder",
        )
