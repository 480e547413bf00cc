"""``sad-deploy verify``: the acceptance test, on the machine that runs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sad_runtime.choices import BackendChoice
from sad_runtime.errors import UserError
from sad_runtime.extras import require

from .console import print_error, print_json, print_note, print_result, print_status
from .options import DEFAULT_BUNDLE, AsJson, expanded

if TYPE_CHECKING:
    from rich.table import Table

    from sad_runtime.acceptance import Accepted

_EXIT_WRONG = 2


@dataclasses.dataclass(frozen=True)
class VerifyChoices:
    """What is tried, and what a bare graph is compared with."""

    backend: Annotated[BackendChoice, typer.Option(help="This one alone; auto: all.")] = BackendChoice.AUTO
    precision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="This one alone.", show_default="all that there are"),
    ] = None
    device: Annotated[
        str, typer.Option(metavar="NAME", help="What --backend openvino runs on: CPU, GPU, NPU.")
    ] = "CPU"
    tf32: Annotated[bool, typer.Option("--tf32", help="Let a GPU round products of float32 to TF32.")] = False
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="FORWARD.onnx", help="The classifier that a bare graph was made from.", show_default=False
        ),
    ] = None
    logits: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="With --against: its output that holds the logits.", show_default=False
        ),
    ] = None
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="With --against: real images to compare on.", show_default="smoothed noise"
        ),
    ] = None


@expanded
def verify(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE", help="A bundle's folder, or a graph of defend or gradient with --against."
        ),
    ] = DEFAULT_BUNDLE,
    *,
    choices: VerifyChoices,
    as_json: AsJson = False,
) -> None:
    """Run every graph and engine that loads here and compare it with what PyTorch said at export.

    Labels, logits and the saliency itself, on the bundle's images, at batch 1, 3 and all. Exit code 2 if
    anything that runs is outside its tolerance, or nothing runs. A bare graph is compared with the classifier
    that it was made from: its logits, and the slope along the gradient.
    """
    found = _found(what, choices)
    results = []
    for each in found:
        results.append(each)
        print_status(_line(each))
    if as_json:
        print_json([_as_json(each) for each in results])
    else:
        print_result(_table(what, results))
    wrong = [each for each in results if each.shortfalls]
    for each in wrong:
        print_error(f"{each.file} on {each.backend}: {'; '.join(each.shortfalls)}")
    if wrong or all(each.figures is None for each in results):
        raise typer.Exit(_EXIT_WRONG)


def _found(what: Path, choices: VerifyChoices) -> Iterator[Accepted]:
    """The results, as soon as they are known.

    Raises:
        UserError: There is nothing to compare, or to compare with.
    """
    if what.is_file() or choices.against is not None:
        if choices.against is None:
            raise UserError(
                f"{what} is a file: what should it be compared with?",
                hint=f"sad-deploy verify {what} --against FORWARD.onnx",
            )
        require("onnx_ir", extra="export", need="sad-deploy verify --against")
        from sad_export.verify_backend import verify_backends

        return verify_backends(
            what,
            choices.against,
            backend=choices.backend,
            device=choices.device,
            tf32=choices.tf32,
            logits=choices.logits,
            images=choices.images,
            notice=print_note,
        )
    from sad_runtime.acceptance import verify_bundle
    from sad_runtime.backends import BackendOptions
    from sad_runtime.bundle import Bundle

    options = BackendOptions(device=choices.device, tf32=choices.tf32)
    return verify_bundle(
        Bundle.open(what), backend=choices.backend, precision=choices.precision, options=options
    )


def _line(each: Accepted) -> str:
    return f"{each.file} on {each.backend}: {each.problem or each.verdict}"


def _table(what: Path, results: list[Accepted]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{what} on this machine"), title_justify="left")
    for column in ("file", "backend", "labels", "logits", "S: median", "smallest", "ms/image", ""):
        table.add_column(
            column, overflow="fold", justify="left" if column in ("file", "backend", "") else "right"
        )
    for each in results:
        table.add_row(each.file, each.backend, *map(Text, _cells(each)))
    return table


def _cells(each: Accepted) -> tuple[str, ...]:
    figures = each.figures
    if figures is None:
        return ("–", "–", "–", "–", "–", each.verdict)
    labels = min(figures.label_agreement, figures.plain_label_agreement)
    logits = max(figures.logits_relative_l2, figures.plain_logits_relative_l2)
    return (
        f"{100 * labels:.4g} %",
        f"{logits:.1e}",
        f"{figures.saliency_cosine_median:.6f}",
        f"{figures.saliency_cosine_min:.6f}",
        f"{each.ms_per_image:.3g}",
        each.verdict,
    )


def _as_json(each: Accepted) -> dict[str, Any]:
    return dataclasses.asdict(each) | {"verdict": each.verdict}
