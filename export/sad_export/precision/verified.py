"""Write a graph in a precision, and compare it with a reference before anybody uses it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from sad_runtime.choices import Precision
from sad_runtime.verification import Verification

from ..graph.expression import Array
from ..graph.write import save_graph
from ..parts import Part
from ..verify import verify
from .convert import lower, lower_to_integers
from .scale import gradient_scales
from .variant import Variant

_EVERY = 2
"""Ranges are measured on every second image, so that half of those verified on were not seen."""


def write_verified(
    graph: ir.Model,
    path: Path,
    variant: Variant,
    images: Array,
    reference: Mapping[str, Array],
    *,
    target: str = "portable",
    allow_inaccurate: bool = False,
) -> Verification:
    """Lower a float32 two-pass graph to a variant, write it and verify it.

    The emulation lies beside it meanwhile.

    Args:
        graph: A float32 two-pass graph for this variant and target, its parts marked; not modified.
        path: Where the graph goes; on an error it may hold a graph that failed.
        variant: Its precisions.
        images: (N, C, H, W) float32 in [0, 1], real ones; at least two.
        reference: ``logits``, ``saliency`` and ``plain_logits`` of these images, in float32.
        target: ``portable`` or ``cpu``.
        allow_inaccurate: Accept figures outside the tolerance, if they are finite.

    Returns:
        The worst figures over batch sizes and forms.

    Raises:
        GraphError: The graph cannot be lowered.
        VerificationError: Some figure is outside its tolerance.
    """
    if variant.is_fp32:
        save_graph(graph, path)
        return verify(path, images, reference, allow_inaccurate=allow_inaccurate)
    if target == "cpu":
        save_graph(lower_to_integers(graph, variant, images[::_EVERY]), path)
        return verify(
            path, images, reference, precision=variant.lowest.value, allow_inaccurate=allow_inaccurate
        )
    half_backward = variant.of_part[Part.BACKWARD] is Precision.FP16
    scales = gradient_scales(graph, images) if half_backward else None
    lowered = lower(graph, variant, gradient_scales=scales, images=images[::_EVERY])
    emulation = path.with_suffix(".emulation.onnx")
    save_graph(lowered.graph, path)
    try:
        save_graph(lowered.emulation, emulation)
        return verify(
            path,
            images,
            reference,
            precision=variant.lowest.value,
            emulation=emulation,
            runs_on_cpu=not variant.uses_bf16,
            allow_inaccurate=allow_inaccurate,
        )
    finally:
        emulation.unlink(missing_ok=True)
