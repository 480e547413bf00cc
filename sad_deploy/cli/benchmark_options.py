"""The options of ``sad-deploy benchmark``."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sad_runtime.choices import BackendChoice

from .options import RESULT

if TYPE_CHECKING:
    from ..benchmark import Options

_option = functools.partial(typer.Option, rich_help_panel="Measuring")

SourceArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SOURCE",
        help="Images, as for infer; without any, photographs are made up.",
        show_default=False,
    ),
]
BundleFolder = Annotated[Path, _option(metavar="DIR", help="The bundle to measure.")]
Out = Annotated[Path, typer.Option(metavar="FILE", help="All figures as JSON.", rich_help_panel=RESULT)]
Plot = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Draw them: .png, .svg or .pdf.", show_default=False, rich_help_panel=RESULT
    ),
]


@dataclasses.dataclass(frozen=True)
class MeasuringChoices:
    """What is measured and for how long; see :class:`sad_deploy.benchmark.Options`."""

    backend: Annotated[
        list[BackendChoice] | None,
        _option(help="Where to run; may be repeated.", show_default="all that run here"),
    ] = None
    precision: Annotated[
        list[str] | None,
        _option(metavar="NAME", help="Of the graph; may be repeated.", show_default="all in the bundle"),
    ] = None
    batch: Annotated[
        list[int] | None,
        _option(
            min=1,
            metavar="N",
            help="Images the backend gets at once; may be repeated.",
            show_default="1, 8, 32",
        ),
    ] = None
    workers: Annotated[
        int | None,
        _option(min=1, metavar="N", help="Decoding threads.", show_default="the cores available"),
    ] = None
    seconds: Annotated[
        float,
        _option(min=0, metavar="S", help="Time for each measurement; at least three rounds are made."),
    ] = 2.0
    images: Annotated[
        int, _option(min=1, metavar="N", help="Most images used; they are repeated as needed.")
    ] = 256

    def options(self) -> Options:
        """For the benchmark.

        Raises:
            UserError: One is out of range.
        """
        from ..benchmark import Options

        return Options(
            backends=tuple(self.backend or ()),
            precisions=tuple(self.precision or ()),
            batch_sizes=tuple(self.batch or ()),
            workers=self.workers,
            seconds=self.seconds,
            images=self.images,
        )
