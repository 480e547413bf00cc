"""``sad-deploy gradient``: any ONNX classifier's input gradient as an ONNX graph; no SAD."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sad_runtime.choices import ConvGradient, Objective, Target
from sad_runtime.extras import require
from sad_runtime.files import Destination

from .console import print_json, print_note, print_status
from .options import (
    GRAPH,
    AsJson,
    ConvGradientChoice,
    ForwardArgument,
    ReadingOptions,
    TargetChoice,
    check_forward,
    expanded,
    refuse_same_file,
)

_OBJECTIVES = "|".join("N" if word is Objective.CLASS else word for word in Objective)


@expanded
def gradient(
    forward: ForwardArgument,
    *,
    of: Annotated[
        str,
        typer.Option(
            metavar=_OBJECTIVES,
            help="What it is the gradient of: the largest logit, that of class N, or what a further input "
            "says (a label, its cross-entropy, factors of all logits).",
            rich_help_panel=GRAPH,
        ),
    ] = Objective.LARGEST.value,
    reading: ReadingOptions,
    target: TargetChoice = Target.PORTABLE,
    conv_gradient: ConvGradientChoice = ConvGradient.AUTO,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the graph goes.",
            show_default="FORWARD.gradient.onnx",
            rich_help_panel="Result",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add the gradient of the largest logit to an ONNX classifier: outputs logits and gradient.

    Standard operators only, with a dynamic batch if the classifier has one. The graph is run and compared
    with the classifier before it is kept.
    """
    check_forward(forward)
    require("onnx_ir", extra="export", need="sad-deploy gradient")
    from sad_export import write_gradient

    out = out or forward.with_suffix(".gradient.onnx")
    Destination.of(out)
    refuse_same_file(forward, out)
    made = write_gradient(
        forward,
        out,
        of=of,
        logits=reading.logits,
        image_size=reading.size(),
        conv_gradient=conv_gradient,
        target=target,
        notice=print_note,
    )
    if as_json:
        print_json({"graph": str(made.graph), "bytes": made.bytes})
    print_status(
        f"{out}: {made.bytes / 1e6:.2f} MB, run and compared with {forward}; "
        "outputs logits (N, K) and gradient, shaped as the image"
    )
