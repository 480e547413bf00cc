"""A classifier's input gradient as a verified file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from sad_runtime.choices import Objective
from sad_runtime.files import Destination, written_whole

from .gradient import Seed
from .graph.write import save_graph
from .input_gradient import differentiated
from .loading import Reading, load_classifier, warn
from .lowering import lowering_for
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
    of: str | int = Objective.LARGEST,
    logits: str | None = None,
    image_size: tuple[int, int] | None = None,
    conv_gradient: str = "auto",
    target: str = "portable",
    notice: Callable[[str], None] = warn,
) -> GradientExport:
    """Write :func:`input_gradient` of a classifier, run it and compare it with the classifier.

    Args:
        forward: The forward graph's file.
        out: Where the graph goes.
        of: What it is the gradient of; see :func:`input_gradient`.
        logits: Name of the logits where the graph has several outputs.
        image_size: Height and width, for a graph that leaves them open.
        conv_gradient: How the gradient of convolutions is written: ``auto``, ``convtranspose`` or ``conv``.
        target: ``portable``, or ``cpu`` for the fastest form in onnxruntime on the CPU.
        notice: Called with a line for everything of the graph that is taken otherwise than it stands.

    Raises:
        UserError: The graph or an argument cannot be used, or the check failed; nothing was written.
    """
    seed = Seed.of(of)
    lowering = lowering_for(target, conv_gradient)
    Destination.of(out).check()
    classifier = load_classifier(Path(forward), Reading(logits, image_size))
    for each in classifier.notices:
        notice(each)
    graph = differentiated(classifier, lowering, seed)
    with written_whole(out, regular=False) as draft:
        save_graph(graph, draft)
        verify_gradient(draft, Path(forward), logits=logits, form=classifier.form, seed=seed)
        size = draft.stat().st_size
    return GradientExport(Path(out), size)
