"""``sad-deploy gradient``: any ONNX classifier's input gradient as an ONNX graph; no SAD."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sad_runtime.choices import ConvGradient, Target
from sad_runtime.extras import require
from sad_runtime.files import Destination, written_whole

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
    from sad_export import input_gradient
    from sad_export.model import save_graph
    from sad_export.verify_gradient import verify_gradient

    out = out or forward.with_suffix(".gradient.onnx")
    Destination.of(out).check()
    refuse_same_file(forward, out)
    graph = input_gradient(forward, logits=logits, dgrad=dgrad.value, target=target.value, notice=print_note)
    with written_whole(out, regular=False) as draft:
        save_graph(graph, draft)
        verify_gradient(draft, forward, logits=logits)
        size = draft.stat().st_size
    print_status(
        f"{out}: {size / 1e6:.2f} MB, run and compared with {forward}; "
        "outputs logits (N, K) and gradient, shaped as the image"
    )
