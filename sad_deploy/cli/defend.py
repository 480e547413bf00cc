"""``sad-deploy defend``: a bare forward ONNX graph to a two-pass graph and engine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sad_runtime.choices import Normalization
from sad_runtime.extras import require

from .console import print_json, print_note, print_result, print_status, print_warning
from .engine_options import EngineOptions, print_engine
from .export import print_written
from .figures import figures_table
from .options import (
    AsJson,
    ForwardArgument,
    GraphChoices,
    ImageOptions,
    ReadingOptions,
    check_forward,
    expanded,
    refuse_same_file,
)

if TYPE_CHECKING:
    from sad_export import ForwardExport

_PANEL = "Defence"


@dataclasses.dataclass(frozen=True)
class DefenceOptions:
    """What calibration decides for a bundle, and a bare graph has to be told."""

    eta: Annotated[
        float,
        typer.Option(
            metavar="X", help="Hybridization ratio: x + eta*S is classified.", rich_help_panel=_PANEL
        ),
    ]
    normalization: Annotated[
        Normalization,
        typer.Option(
            metavar="|".join(Normalization),
            help="How saliency is scaled per image before eta.",
            rich_help_panel=_PANEL,
        ),
    ] = Normalization.NONE
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of images to verify on, and for the ranges of int8.",
            show_default="noise",
            rich_help_panel=_PANEL,
        ),
    ] = None


@expanded
def defend(
    forward: ForwardArgument,
    *,
    defence: DefenceOptions,
    image: ImageOptions,
    reading: ReadingOptions,
    graph: GraphChoices,
    engine: EngineOptions,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The two-pass graph; an engine goes beside it.",
            show_default="FORWARD.sad.onnx",
            rich_help_panel="Result",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Defend a bare ONNX classifier: its two-pass graph, verified, and a TensorRT engine with --trt.

    The graph stays as it is: saliency is taken at its input, and BatchNorm statistics are not recalibrated.
    It is checked against itself, pass by pass, and its saliency by the slope of the largest logit.
    """
    check_forward(forward)
    require("onnx_ir", extra="export", need="sad-deploy defend")
    import sad_export
    from sad_export.defend import engine_files
    from sad_runtime.tensorrt import Flavor

    options, request, bare = graph.options(), engine.request(graph.target), image.options()
    out = out or forward.with_name(options.variant.suffixed(f"{forward.stem}.sad.onnx"))
    refuse_same_file(forward, out)
    if defence.images is None and forward.is_file():
        print_warning("verifying on noise: give a folder of real images with --images")
    made = sad_export.defend(
        forward,
        out,
        eta=defence.eta,
        normalization=defence.normalization,
        mean=bare.mean,
        std=bare.std,
        bare=bare,
        images=defence.images,
        logits=reading.logits,
        image_size=reading.size(),
        options=options,
        engine=request,
        status=print_status,
        notice=print_note,
    )
    _print(made, forward, as_json=as_json)
    for each in Flavor:
        stale, _ = engine_files(out, each)
        if stale.exists() and (made.engine is None or each != made.engine.flavor):
            print_warning(f"{stale} is of an earlier graph: build it again with --trt, or delete it")
    if made.engine is not None:
        print_engine(made.engine)


def _print(made: ForwardExport, forward: Path, *, as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(made) | {"graph": str(made.graph)})
    else:
        whole = made.graph if made.lowered is None else "its float32 form"
        figures = dataclasses.asdict(made.verification)
        print_result(figures_table(f"{whole} against {forward}", {"": figures}))
        if made.lowered is not None:
            title = f"{made.graph} against its float32 form"
            print_result(figures_table(title, {"": made.lowered.as_dict()}))
    print_written(str(made.graph), made.bytes, made.shortfalls)
