"""Compare a two-pass graph with its reference on real images, and keep it only if it agrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from sad_runtime.errors import UserError
from sad_runtime.verification import TOLERANCES, Verification, compare, worst

from .graph.expression import Array
from .graph.session import cpu_session

BATCH_SIZES = (1, 3, 8)
"""One image, an odd batch and an even one: a batch size frozen into the graph fails one of them."""

REPORT = "nothing was kept; this should not happen: please report the model"
_HINTS = {
    "fp32": REPORT,
    "fp16": "nothing was kept; try --saliency-precision fp32, or take it with --allow-inaccurate",
    "bf16": "nothing was kept; try --saliency-precision fp16, or take it with --allow-inaccurate",
    "int8": "nothing was kept; try other --ranges or --saliency-precision fp32, or take it with "
    "--allow-inaccurate",
}
_OVERFLOW_HINTS = {
    "fp32": REPORT,
    "fp16": "nothing was kept; some value left fp16's range: bf16 has that of fp32, --precision bf16",
    "bf16": REPORT,
    "int8": REPORT,
}


class VerificationError(UserError):
    """The graph does not compute what its reference does; nothing was kept."""


def verify(
    graph: Path,
    images: Array,
    reference: Mapping[str, Array],
    *,
    precision: str = "fp32",
    batch_sizes: Sequence[int] = BATCH_SIZES,
    emulation: Path | None = None,
    runs_on_cpu: bool = True,
    allow_inaccurate: bool = False,
) -> Verification:
    """Run a two-pass graph on the CPU and compare it with a reference.

    In lower precision its emulation in float32 is run as well, or in its place: onnxruntime's CPU leaves
    values between fp16 nodes unrounded, and has no bf16 kernels. See :mod:`sad_export.precision`.

    Args:
        graph: The ONNX file.
        images: (N, C, H, W) float32 in [0, 1], real ones; at least two.
        reference: ``logits`` (N, K), ``saliency`` (N, C, H, W) and ``plain_logits`` (N, K) of these images.
        precision: Row of the tolerance table.
        batch_sizes: Each is run over all images.
        emulation: The ONNX file of the graph's emulation in float32, for a graph in lower precision.
        runs_on_cpu: Whether onnxruntime's CPU runs the graph itself.
        allow_inaccurate: Return figures outside the tolerance instead of raising, if they are finite.

    Returns:
        The worst figures over the batch sizes and forms.

    Raises:
        VerificationError: Some figure is outside its tolerance; the message names each.
    """
    if len(images) < 2:
        raise VerificationError(
            f"verification needs at least two images, got {len(images)}",
            hint="calibrate again with --samples 64, or give --data",
        )
    forms = [graph] if runs_on_cpu else []
    forms += [emulation] if emulation is not None else []
    fuses = emulation is None
    figures = worst([each for form in forms for each in _each(form, images, reference, batch_sizes, fuses)])
    shortfalls = figures.shortfalls(TOLERANCES[precision])
    if shortfalls and not (allow_inaccurate and figures.is_finite()):
        raise VerificationError(
            f"the exported graph differs from its reference on {len(images)} images: {'; '.join(shortfalls)}",
            hint=_HINTS[precision] if figures.is_finite() else _OVERFLOW_HINTS[precision],
        )
    return figures


def _each(
    graph: Path, images: Array, reference: Mapping[str, Array], batch_sizes: Sequence[int], fuses: bool
) -> list[Verification]:
    """Figures at each batch size."""
    session = cpu_session(graph, fuses_integers=fuses)
    return [compare(_run(session, images, size), reference) for size in batch_sizes]


def run_graph(graph: Path, images: Array) -> dict[str, Array]:
    """``logits``, ``saliency`` and ``plain_logits`` of a two-pass graph, on the CPU."""
    return _run(cpu_session(graph), images, max(BATCH_SIZES))


def _run(session: onnxruntime.InferenceSession, images: Array, batch_size: int) -> dict[str, Array]:
    names = ("logits", "saliency", "plain_logits")
    parts = [
        session.run(names, {"image": images[i : i + batch_size]}) for i in range(0, len(images), batch_size)
    ]
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}
