"""``sad-deploy calibrate``: a trained network and images in, a calibrated bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sad_deploy.recipe import Recipe, resolve
from sad_runtime.errors import BundleError, UserError
from sad_runtime.extras import require

from .calibrate_options import CalibrateOptions
from .calibrate_report import print_input, print_outcome
from .console import interruptible, print_hint, print_json, print_note, print_result, print_warning, talk
from .options import DEFAULT_BUNDLE, RESULT, AsJson, expanded
from .progress import progress

if TYPE_CHECKING:
    from sad_deploy.calibration_job import Kept
    from sad_deploy.processes import Processes

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
            help="Replace a bundle that was exported, with its graphs and engines; begin anew where a "
            "calibration was interrupted.",
            rich_help_panel=RESULT,
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with a calibration that was interrupted; it ends as it would have.",
            rich_help_panel=RESULT,
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Calibrate a classifier's BatchNorm statistics for SAD and write a bundle.

    Without --eta, values from one that moves no pixel to one that breaks everything are tried on held-out
    images, and the largest that costs little accuracy is taken. If none does, nothing is written.
    Several processes share the work: torchrun --nproc-per-node 4 -m sad_deploy calibrate ...
    """
    recipe = resolve(options.options())
    from sad_runtime.bundle import check_destination

    check_destination(out)
    for module in NEEDS:
        require(module, extra="calibrate", need="sad-deploy calibrate")
    if not overwrite:
        _refuse_exported(out)
        _refuse_own(out, options.from_bundle)
    from sad_deploy.kept_state import state_file

    if not (resume or overwrite):
        _refuse_interrupted(state_file(out))
    from sad_deploy.calibration_job import Kept, run
    from sad_deploy.preparation import prepare
    from sad_deploy.processes import joined

    kept = Kept(state_file(out), resume, print_warning)
    with joined() as processes:
        if processes.is_first:
            _written(recipe, out, kept, processes, as_json=as_json)
        else:
            talk(quiet=True, verbose=False, log_file=None)
            run(recipe, prepare(recipe), _unseen, kept=kept, processes=processes)


def _written(recipe: Recipe, out: Path, kept: Kept, processes: Processes, *, as_json: bool) -> None:
    """All that the first of the processes does, which is what one alone does."""
    from sad_deploy.calibration_job import run
    from sad_deploy.eta_advice import refusal
    from sad_deploy.kept_state import forget
    from sad_deploy.preparation import prepare
    from sad_deploy.provenance import provenance, save

    with interruptible(f"{out} was not touched; --resume goes on"), progress() as report:
        preparation = prepare(recipe)
        print_input(recipe, preparation)
        if kept.resume and not kept.file.exists():
            print_note(f"{kept.file} does not exist: there is nothing to go on with, and it begins anew")
        try:
            outcome = run(recipe, preparation, report, kept=kept, processes=processes)
        except UserError:
            if not kept.resume and processes.count == 1:  # the same again would end in the same way
                forget(kept.file)
            raise
    print_outcome(recipe, outcome, figures=not as_json)
    if outcome.choice is not None and not outcome.choice.within_limit and not recipe.allow_drop:
        forget(kept.file)
        raise refusal(outcome.choice)
    save(out, recipe, preparation, outcome)
    forget(kept.file)
    if as_json:
        eta = outcome.calibration.eta
        print_json({"bundle": str(out), "eta": eta, "calibration": provenance(recipe, preparation, outcome)})
    else:
        print_result(f"bundle: {out}")
    print_hint(f"next: sad-deploy export{'' if out == DEFAULT_BUNDLE else f' {out}'}")


def _unseen(stage: str, done: int, total: int) -> None:
    """The first of the processes shows how far all are."""


def _refuse_interrupted(state: Path) -> None:
    """What an interrupted calibration left is quickly lost.

    Raises:
        UserError: There is such a state.
    """
    if state.exists():
        raise UserError(
            f"{state} is the state of a calibration that was interrupted",
            hint="--resume goes on with it; --overwrite begins anew",
        )


def _refuse_own(out: Path, source: str | None) -> None:
    """A bundle calibrated for other images is another one.

    Raises:
        UserError: It would replace the one that it comes from.
    """
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
