"""A classifier's input gradient as a verified file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from sad_runtime.files import Destination, written_whole

from .graph.write import save_graph
from .input_gradient import input_gradient
from .model import warn
from .verify_gradient import verify_gradient


@dataclasses.dataclass(frozen=True)
class GradientExport:
    """What was written.

    Attributes:
        graph: The file: ``logits`` (N, K) and ``gradient``, shaped as the image.
        bytes: Its size.
    """

    graph: Path
    bytes: int


def write_gradient(
    forward: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    logits: str | None = None,
    conv_gradient: str = "auto",
    target: str = "portable",
    notice: Callable[[str], None] = warn,
) -> GradientExport:
    """Write :func:`input_gradient` of a classifier, run it and compare it with the classifier.

    Args:
        forward: The forward graph's file.
        out: Where the graph goes.
        logits: Name of the logits where the graph has several outputs.
        conv_gradient: How the gradient of convolutions is written: ``auto``, ``convtranspose`` or ``conv``.
        target: ``portable``, or ``cpu`` for the fastest form in onnxruntime on the CPU.
        notice: Called with what of the graph is taken otherwise than it stands; see :func:`input_gradient`.

    Raises:
        UserError: The graph or an argument cannot be used, or the check failed; nothing was written.
    """
    Destination.of(out).check()
    graph = input_gradient(
        Path(forward), logits=logits, conv_gradient=conv_gradient, target=target, notice=notice
    )
    with written_whole(out, regular=False) as draft:
        save_graph(graph, draft)
        verify_gradient(draft, Path(forward), logits=logits)
        size = draft.stat().st_size
    return GradientExport(Path(out), size)
