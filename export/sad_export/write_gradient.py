"""A classifier's input gradient as a verified file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sad_runtime.bare_graph import BareOptions, stated
from sad_runtime.choices import Method, Objective
from sad_runtime.errors import UserError
from sad_runtime.files import Destination, written_whole
from sad_runtime.graph_metadata import space_metadata

from .attributed import attributed
from .attribution import Attribution
from .gradient import Seed
from .graph.values import shape_of, static, text_of
from .graph.write import save_graph
from .loading import ForwardGraph, Reading, load_classifier, warn
from .lowering import lowering_for
from .verify_attribution import in_space, verify_attribution
from .verify_gradient import Space


@dataclasses.dataclass(frozen=True)
class GradientExport:
    """What was written.

    Attributes:
        graph: The file.
        bytes: Its size.
        outputs: Names of its outputs with their shapes, for people: ``logits (N, 10)``.
    """

    graph: Path
    bytes: int
    outputs: tuple[str, ...]


def write_gradient(
    forward: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    of: str | int = Objective.LARGEST,
    at: str | None = None,
    method: str = Method.SALIENCY,
    bare: BareOptions = BareOptions(),  # noqa: B008 -- frozen
    logits: str | None = None,
    image_size: tuple[int, int] | None = None,
    conv_gradient: str = "auto",
    target: str = "portable",
    notice: Callable[[str], None] = warn,
    **settings: Any,
) -> GradientExport:
    """Write :func:`attribution_graph` of a classifier, run it and compare it with the classifier.

    Args:
        forward: The forward graph's file.
        out: Where the graph goes.
        of: What it is the gradient of; see :func:`input_gradient`, also for ``at``.
        at: Where it is taken, for ``saliency`` and ``gradcam``.
        bare: How images come to the classifier, and its classes: mean and std are put into the graph, whose
            input then is pixels in [0, 1], and the gradient's too; the rest is written into its metadata.
        method: ``saliency``, which is the gradient itself, ``gradcam``, ``integrated`` or ``smoothgrad``.
        logits: Name of the logits where the graph has several outputs.
        image_size: Height and width, for a graph that leaves them open.
        conv_gradient: How the gradient of convolutions is written: ``auto``, ``convtranspose`` or ``conv``.
        target: ``portable``, or ``cpu`` for the fastest form in onnxruntime on the CPU.
        notice: Called with a line for everything of the graph that is taken otherwise than it stands, and for
            the feature map that is taken.
        **settings: Of the method; see :class:`~sad_export.attribution.Attribution`.

    Raises:
        UserError: The graph or an argument cannot be used, or the check failed; nothing was written.
    """
    attribution = Attribution(method, Seed.of(of), at, **settings)
    lowering = lowering_for(target, conv_gradient)
    Destination.of(out).check()
    classifier = load_classifier(Path(forward), Reading(logits, image_size))
    for each in classifier.notices:
        notice(each)
    said, space = _told(classifier, bare, Path(forward))
    graph = attributed(in_space(classifier.copy(), space), lowering, attribution, notice)
    graph.metadata_props.update(said)
    with written_whole(out, regular=False) as draft:
        save_graph(graph, draft)
        verify_attribution(draft, Path(forward), classifier, attribution, logits=logits, space=space)
        size = draft.stat().st_size
    outputs = (f"{value.name} {text_of(shape_of(value))}" for value in graph.graph.outputs)
    return GradientExport(Path(out), size, tuple(outputs))


def _told(classifier: ForwardGraph, bare: BareOptions, forward: Path) -> tuple[dict[str, str], Space | None]:
    """Metadata of what was told, and mean and std if they were.

    Raises:
        UserError: It does not fit the classifier.
    """
    _, channels, height, width = classifier.image_shape
    chw = (static(channels), static(height), static(width))
    said = stated(bare, forward, chw, classifier.num_classes)
    if (bare.mean is None) != (bare.std is None):
        raise UserError("mean and std come together")
    if bare.mean is None or bare.std is None:
        return said, None
    return said | space_metadata(bare.mean, bare.std), (bare.mean, bare.std)
