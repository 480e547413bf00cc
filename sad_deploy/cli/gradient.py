"""``sad-deploy gradient``: any ONNX classifier's input gradient as an ONNX graph; no SAD."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sad_runtime.choices import ConvGradient, Target
from sad_runtime.extras import require

from .console import print_note, print_status
from .export import refuse_same_file


def gradient(
    forward: Annotated[Path, typer.Argument(metavar="forward.onnx", help="A classifier: images → logits.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the graph goes.", show_default="NAME.gradient.onnx")
    ] = None,
    logits: Annotated[
        str | None, typer.Option(help="The output that holds the logits, if there are several.")
    ] = None,
    target: Annotated[
        Target, typer.Option(help="cpu: the same results, faster in onnxruntime on the CPU.")
    ] = Target.PORTABLE,
    dgrad: Annotated[
        ConvGradient, typer.Option(help="How convolutions are differentiated.")
    ] = ConvGradient.AUTO,
) -> None:
    """Add the gradient of the largest logit to an ONNX classifier: outputs logits and gradient.

    Standard operators only, with a dynamic batch if the classifier has one.
    """
    require("onnx_ir", extra="export", need="sad-deploy gradient")
    from sad_export import write_gradient

    out = out or forward.with_suffix(".gradient.onnx")
    refuse_same_file(forward, out)
    made = write_gradient(forward, out, logits=logits, conv_gradient=dgrad, target=target, notice=print_note)
    print_status(
        f"{out}: {made.bytes / 1e6:.2f} MB, run and compared with {forward}; "
        "outputs logits (N, K) and gradient, shaped as the image"
    )
