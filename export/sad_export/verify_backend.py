"""A bare graph of :func:`sad_export.defend` or :func:`sad_export.write_gradient` on this machine's backends.

There is no bundle to carry references, so they are made here: the graph is written once more in float32, from
the classifier, and checked in onnxruntime against central differences. Then each backend is compared with it.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sad_runtime.acceptance import BATCH_SIZES, Accepted
from sad_runtime.backends.batch_limit import Notice, ignore
from sad_runtime.backends.load import GRAPH_BACKENDS, BackendOptions, open_graph
from sad_runtime.backends.onnxruntime import OnnxRuntimeBackend
from sad_runtime.backends.openvino import OpenVinoBackend
from sad_runtime.backends.protocol import INPUT
from sad_runtime.choices import BackendChoice, Method
from sad_runtime.errors import UserError
from sad_runtime.graph_metadata import PREFIX
from sad_runtime.verification import References, verdict

from .attributed import attributed
from .attribution import OUTPUTS, Attribution
from .graph.errors import GraphError
from .graph.expression import Array
from .graph.session import cpu_session
from .graph.values import shape_of, static
from .graph.write import save_graph
from .loading import Reading, load_classifier
from .lowering import lowering_for
from .precision.convert import PRECISION_KEY
from .trial_images import read_images, smooth_noise
from .two_pass import Defence, defended
from .verify import run_graph
from .verify_attribution import in_space, verify_attribution
from .verify_forward import verify_forward
from .verify_gradient import Space

IMAGES = 8


@dataclasses.dataclass(frozen=True)
class _Stated:
    """What a file says of itself."""

    settings: Mapping[str, Any]
    precision: str
    attribution: Attribution | None

    @property
    def space(self) -> Space | None:
        """Mean and std inside a gradient graph, if there are any."""
        mean, std = (self.settings.get(name) for name in ("mean", "std"))
        return None if mean is None or std is None else (mean, std)

    @classmethod
    def of(cls, path: Path, model: ir.Model) -> _Stated:
        """Read it.

        Raises:
            GraphError: It is neither a two-pass graph nor a gradient, or takes more than images.
        """
        outputs = [value.name for value in model.graph.outputs]
        metadata = model.metadata_props
        settings = {
            key.removeprefix(PREFIX): json.loads(metadata[key])
            for key in (f"{PREFIX}{name}" for name in ("eta", "normalization", "clip", "mean", "std"))
            if key in metadata
        }
        is_two_pass = "saliency" in outputs and "eta" in settings
        if not is_two_pass and not {*OUTPUTS.values()} & {*outputs}:
            raise GraphError(
                f"{path} has outputs {', '.join(map(str, outputs))}: neither a two-pass graph nor a gradient",
                hint="it takes what sad-deploy defend and sad-deploy gradient write",
            )
        if len(model.graph.inputs) != 1:
            raise GraphError(
                f"{path} takes {model.graph.inputs[1].name} beside the image, and backends run images alone",
                hint="its check at writing is all there is; gradient without --of has the image alone",
            )
        attribution = None if is_two_pass else Attribution.stated(metadata)
        return cls(settings, metadata.get(PRECISION_KEY, "fp32"), attribution)


def verify_backends(
    graph: Path,
    forward: Path,
    *,
    backend: BackendChoice = BackendChoice.AUTO,
    device: str = "CPU",
    tf32: bool = False,
    logits: str | None = None,
    images: Path | None = None,
    notice: Notice = ignore,
) -> Iterator[Accepted]:
    """Compare a bare graph on backends with the classifier that it was made from.

    Args:
        graph: The file of ``defend`` or ``gradient``.
        forward: The classifier.
        backend: This one alone; ``auto`` for ``cpu``, ``openvino`` and ``cuda``.
        device: What ``openvino`` runs on.
        tf32: Whether CUDA may round products to TF32.
        logits: Name of the classifier's logits, where it has several outputs.
        images: Folder of real images; smoothed noise otherwise.
        notice: Called with a line for everything of the classifier that is taken otherwise than it stands.

    Yields:
        One result a backend.

    Raises:
        UserError: The files do not belong together, or cannot be used.
    """
    if backend not in (BackendChoice.AUTO, *GRAPH_BACKENDS):
        raise UserError(
            f"--backend {backend} runs engines, and {graph} is a graph", hint="verify a bundle with an engine"
        )
    model = ir.load(graph)
    stated = _Stated.of(graph, model)
    model.graph.inputs[0].name = INPUT
    with tempfile.TemporaryDirectory() as folder:
        renamed = Path(folder) / "model.onnx"
        ir.save(model, renamed, external_data="model.data")
        references = _references(stated, model, forward, Path(folder), logits, images, notice)
        for choice in GRAPH_BACKENDS if backend is BackendChoice.AUTO else (backend,):
            found = Accepted(graph.name, stated.precision, choice.value)
            on_gpu = choice is BackendChoice.CUDA
            options = BackendOptions(precision=stated.precision, tf32=tf32 and on_gpu, device=device)
            try:
                with open_graph(renamed, choice, options) as opened:
                    trial = verdict(
                        _Named(opened, stated.attribution) if stated.attribution else opened,
                        references,
                        precision=stated.precision,
                        tf32=tf32,
                        batch_sizes=[*BATCH_SIZES, len(references)],
                        timed=len(references),
                    )
            except UserError as error:
                found = dataclasses.replace(found, problem=error.message)
            else:
                found = found.ran(opened.runs_on, trial)
            yield found


@dataclasses.dataclass(frozen=True)
class _Named:
    """A gradient graph under the names of a two-pass one: its logits are those of the first pass."""

    backend: OnnxRuntimeBackend | OpenVinoBackend
    attribution: Attribution

    def run(self, images: Array, outputs: Sequence[str]) -> dict[str, Array]:
        """See :class:`~sad_runtime.backends.protocol.Backend`."""
        return _named(self.backend.run(images, _outputs(self.attribution)))


def _outputs(attribution: Attribution) -> tuple[str, ...]:
    inner = attribution.chosen is Method.SALIENCY and attribution.at is not None
    return ("logits", "activation", "gradient") if inner else ("logits", attribution.output)


def _named(got: Mapping[str, Array]) -> dict[str, Array]:
    """Under the names of a two-pass graph; what is taken inside the network counts times its activation.

    Where the head is linear the gradient there is the same for all images, and would tell nothing.
    """
    logits, *maps = got.values()
    return {"logits": logits, "plain_logits": logits, "saliency": np.asarray(np.prod(maps, axis=0))}


def _references(
    stated: _Stated,
    model: ir.Model,
    forward: Path,
    folder: Path,
    logits: str | None,
    images: Path | None,
    notice: Notice,
) -> References:
    """What the classifier says: its graph written anew in float32, and checked.

    Raises:
        UserError: It cannot be, or does not take these images.
    """
    channels, height, width = (static(side) for side in shape_of(model.graph.inputs[0])[1:])
    pixels = (
        smooth_noise(IMAGES, channels, height, width)
        if images is None
        else read_images(images, IMAGES, channels, height, width)
    )
    reading = Reading(logits, (height, width), in_float32=True)
    classifier = load_classifier(forward, reading)
    for each in classifier.notices:
        notice(each)
    anew = folder / "anew.onnx"
    if (attribution := stated.attribution) is not None:
        space = stated.space
        inner = in_space(classifier.copy(), space)
        save_graph(attributed(inner, lowering_for(), attribution, ignore), anew)
        verify_attribution(anew, forward, classifier, attribution, logits=logits, space=space)
        session = cpu_session(anew)
        name = session.get_inputs()[0].name
        names = _outputs(attribution)
        rows = [session.run(list(names), {name: image[None]}) for image in pixels]
        got = _named({each: np.concatenate([row[i] for row in rows]) for i, each in enumerate(names)})
    else:
        defence = Defence(**stated.settings)
        save_graph(defended(classifier, defence, lowering_for()), anew)
        verify_forward(anew, forward, pixels, defence, logits=logits, form=classifier.form)
        got = run_graph(anew, pixels)
    maps = got["saliency"].reshape(len(pixels), -1)
    return References(pixels, got["logits"], got["plain_logits"], maps, np.arange(maps.shape[1]))
