"""``sad-deploy evaluate``: white-box and black-box attacks on the file that is shipped, worst case first."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sad_runtime.choices import BackendChoice, Norm
from sad_runtime.errors import UserError
from sad_runtime.extras import require
from sad_runtime.files import Destination, written_whole

from .bare_options import BareChoices
from .console import interruptible, print_json, print_note, print_result, print_status, print_warning
from .options import DEFAULT_BUNDLE, RESULT, AsJson, expanded

if TYPE_CHECKING:
    from sad_deploy.evaluation.assembly import Assembled, Choices
    from sad_deploy.evaluation.evaluate import Evaluation, Setting
    from sad_runtime.bundle import Bundle

ATTACK = "Attack"
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """What is attacked, and how hard."""

    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Labelled images: a folder, archives or tables (.tar, .zip, .parquet), a list FILE.csv, a "
            "pattern or @LIST, module:factory, digits, cifar10:PATH. Of train/ and test/ in it, the second.",
            show_default="the bundle's test images, of digits",
        ),
    ] = None
    labels: Annotated[
        str,
        typer.Option(
            metavar="folders|FILE.csv",
            help="What they show: the class whose name a folder has, or a list of path,label lines.",
        ),
    ] = "folders"
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Stop at images that cannot be used; else others are taken, which is said."
        ),
    ] = False
    images: Annotated[int, typer.Option(metavar="N", min=1, help="How many of them.")] = 100
    epsilon: Annotated[
        list[str] | None,
        typer.Option(
            metavar="E",
            help="How far a pixel may move, in [0, 1]; several for a curve.",
            show_default="8/255",
            rich_help_panel=ATTACK,
        ),
    ] = None
    norm: Annotated[
        Norm, typer.Option(metavar="|".join(Norm), help="How that is measured.", rich_help_panel=ATTACK)
    ] = Norm.LINF
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="CPU time to spend, for example 10m: the strongest attacks that fit; what does not is said.",
            show_default="all attacks",
            rich_help_panel=ATTACK,
        ),
    ] = None
    transfer: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL.onnx",
            help="Another classifier of the same images: what fools it is tried too.",
            show_default=False,
            rich_help_panel=ATTACK,
        ),
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Of all random numbers.", rich_help_panel=ATTACK)] = 0
    backend: Annotated[
        BackendChoice, typer.Option(help="What judges, of a bundle; auto: cpu.", rich_help_panel=ATTACK)
    ] = BackendChoice.AUTO
    precision: Annotated[
        str,
        typer.Option(metavar="NAME", help="Which graph or engine of a bundle.", rich_help_panel=ATTACK),
    ] = "fp32"
    matrix: Annotated[
        bool,
        typer.Option("--matrix", help="Attack every other graph of the bundle too.", rich_help_panel=ATTACK),
    ] = False
    processes: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Processes of one thread each.", show_default="one a core"),
    ] = None

    def choices(self) -> Choices:
        """What is attacked."""
        from sad_deploy.evaluation.assembly import Choices

        return Choices(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Choices)})


@dataclasses.dataclass(frozen=True)
class ResultOptions:
    """What is made of the answers, and where it goes."""

    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where evaluation.json and the results of an interrupted run lie.",
            show_default="BUNDLE.evaluation",
            rich_help_panel=RESULT,
        ),
    ] = None
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", help="Write a page to look at.", show_default=False, rich_help_panel=RESULT
        ),
    ] = None
    save_images: Annotated[
        bool,
        typer.Option(
            "--save-images", help="Keep the adversarial images as PNG files, too.", rich_help_panel=RESULT
        ),
    ] = False
    clean: Annotated[
        bool,
        typer.Option("--clean", help="No attack: accuracy, by class, confusions, calibration of confidence."),
    ] = False
    paper_table: Annotated[
        str | None,
        typer.Option(
            metavar="1|2|3|4|5|s46",
            help="The attacks of this table of the paper in place of all checks, beside its figures.",
            show_default=False,
            rich_help_panel=ATTACK,
        ),
    ] = None

    def check(self, *, matrix: bool) -> None:
        """Refuse what contradicts itself or cannot be written, before any work.

        Raises:
            UserError: It does.
        """
        pages = {"--report": self.report, "--save-images": self.save_images, "--matrix": matrix}
        if self.paper_table is not None:
            _refuse_beside("--paper-table", {"--clean": self.clean, **pages})
        if self.clean:
            _refuse_beside("--clean", pages)
        if self.report is not None:
            Destination.of(self.report, option="--report")


@expanded
def evaluate(
    what: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder, or a graph's file.")
    ] = DEFAULT_BUNDLE,
    *,
    options: EvaluateOptions,
    bare: BareChoices,
    result: ResultOptions,
    as_json: AsJson = False,
) -> None:
    """Attack the file that is shipped: worst case over all attacks, beside the undefended network.

    An interrupted run goes on where it was when it is called again. Robust accuracy is an upper bound: a
    better attack can only lower it.
    """
    threats = _threats(options)
    budget = None if options.budget is None else _seconds(options.budget)
    require("onnx_ir", extra="export", need="sad-deploy evaluate")
    from sad_deploy.evaluation.assembly import assemble, draw
    from sad_deploy.evaluation.evaluate import Setting
    from sad_deploy.evaluation.evaluate import evaluate as attack

    from .progress import share_progress

    result.check(matrix=options.matrix)
    folder = result.out or Path(f"{what}".rstrip("/") + ".evaluation")
    if result.clean:
        return _clean(bare.opened(what), folder, options, as_json=as_json)
    with (
        interruptible(f"what is done is kept in {folder}; the same command goes on"),
        share_progress() as progress,
    ):
        assembled = assemble(bare.opened(what), folder, options.choices(), notice=print_note)
        setting = Setting(threats, options.seed, budget, options.processes, progress, print_note)
        if result.paper_table is not None:
            return _paper(result.paper_table, assembled, setting, folder, as_json=as_json)
        evaluation = attack(assembled.subjects, assembled.data.images, setting, folder)
    if result.report is not None:
        draw(assembled, evaluation, result.report)
    _finish(assembled, evaluation, folder, as_json=as_json, save_images=result.save_images)


def _clean(bundle: Bundle, folder: Path, options: EvaluateOptions, *, as_json: bool) -> None:
    from sad_deploy.evaluation.assembly import unattacked
    from sad_runtime.labelled import Scores, out_of_step

    from .score_lines import score_lines

    data, answers = unattacked(bundle, folder, options.choices(), notice=print_note)
    model, classes = bundle.manifest.model.name, bundle.manifest.classes
    found = {name: Scores.of_logits(logits, data.images.labels) for name, logits in answers.items()}
    if problem := out_of_step(next(iter(found.values())).accuracy, len(classes)):
        raise UserError(problem[0], hint=problem[1])
    if as_json:
        networks = {name: each.as_dict(classes) for name, each in found.items()}
        print_json({"model": model, "data": data.as_dict(), "classes": list(classes), "networks": networks})
        return
    title = f"{model} · {len(data.images)} {data.split} images of {data.source}"
    for line in score_lines(title, found, classes):
        print_result(line)


def _refuse_beside(option: str, others: Mapping[str, object]) -> None:
    """Raises UserError if one of the others is given."""
    given = [name for name, value in others.items() if value]
    if given:
        raise UserError(f"{option} does not go with {', '.join(given)}", hint="run them one after the other")


def _paper(table: str, assembled: Assembled, setting: Setting, folder: Path, *, as_json: bool) -> None:
    from sad_deploy.evaluation.paper import paper_table

    from .paper_lines import paper_lines

    found = paper_table(table, assembled.subjects, assembled.data.images, setting, folder)
    recorded = {"model": assembled.model, "data": assembled.data.as_dict(), **found.as_dict()}
    path = folder / f"paper-table-{table}.json"
    with written_whole(path) as draft:
        draft.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if as_json:
        print_json(recorded)
    else:
        for line in paper_lines(found, assembled.data, assembled.model):
            print_result(line)
    print_status(f"table: {path}")


def _finish(
    assembled: Assembled, evaluation: Evaluation, folder: Path, *, as_json: bool, save_images: bool
) -> None:
    from sad_deploy.evaluation.assembly import keep

    from .evaluate_table import lines

    recorded = keep(assembled, evaluation, folder, save_images=save_images)
    if as_json:
        print_json(recorded)
    else:
        for line in lines(evaluation, assembled.data, assembled.model):
            print_result(line)
    for result in evaluation.results:
        weak = [each for each in result.files if result.defended.worst_case.percent - each.worst.percent >= 5]
        for each in weak:
            points = result.defended.worst_case.percent - each.worst.percent
            print_warning(f"{each.file} is {points:.1f} points less robust than {result.defended.name}")
    print_status(f"evaluation: {folder / 'evaluation.json'}")


def _threats(options: EvaluateOptions) -> list[Any]:
    """Raises UserError for an ε that is none."""
    from sad_deploy.evaluation.threat import Threat, parse_epsilon

    return [Threat(parse_epsilon(text), options.norm) for text in options.epsilon or ["8/255"]]


def _seconds(text: str) -> float:
    """``90``, ``90s``, ``10m`` or ``2h`` in seconds.

    Raises:
        UserError: Something else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if found is None or float(found[1]) <= 0:
        raise UserError(f"--budget takes a time, got {text!r}", hint="for example 10m")
    return float(found[1]) * _UNITS[found[2]]
