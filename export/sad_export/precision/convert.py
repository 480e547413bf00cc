"""A float32 two-pass graph in the precisions of a variant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir

from sad_runtime.graph_metadata import PREFIX

from ..graph.errors import GraphError
from ..graph.expression import Array
from ..graph.values import HALF
from ..graph.write import label_and_check
from ..parts import Part
from .int8 import IntegerPass, plan_integers, simulate_integers
from .lower_pass import LowerPrecisionPass
from .plan import plan_precision
from .scale import scale_gradient
from .variant import Variant

PRECISION_KEY = f"{PREFIX}precision"
"""Metadata key of a graph that holds its variant's label."""


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A graph in lower precision.

    Attributes:
        graph: The one to deploy.
        emulation: Its float32 twin for verification: every value is rounded as the graph rounds it.
        kept: Why nodes of the lowered passes stay float32, by name.
    """

    graph: ir.Model
    emulation: ir.Model
    kept: Mapping[str, str]


def lower(
    model: ir.Model,
    variant: Variant,
    *,
    gradient_scales: Mapping[str, float] | None = None,
    images: Array | None = None,
) -> Lowered:
    """Write a two-pass graph in lower precision.

    Args:
        model: A two-pass graph for the target ``portable`` and this variant, its parts marked. Not modified.
        variant: Which precisions.
        gradient_scales: Of :func:`gradient_scales`, for a backward in fp16.
        images: (N, C, H, W) float32 in [0, 1], real ones, for the ranges of int8.

    Returns:
        The graph and its twin. ``image`` and all outputs are float32 in both.

    Raises:
        GraphError: Not a two-pass graph in float32.
    """
    _refuse_half_precision(model)
    lowered = model.clone()
    scale_gradient(lowered.graph, gradient_scales or {})
    if variant.uses_int8:
        if images is None:
            raise GraphError("int8 needs images for its ranges")
        simulate_integers(lowered, variant.int8_passes, images, method=variant.ranges)
    emulation = lowered.clone()
    plan = plan_precision(lowered.graph, variant)
    LowerPrecisionPass(plan)(lowered)
    LowerPrecisionPass(plan_precision(emulation.graph, variant), emulate=True)(emulation)
    metadata = {**lowered.metadata_props, PRECISION_KEY: variant.label}
    for graph in (lowered, emulation):
        label_and_check(graph, what="two-pass", metadata=metadata)
    return Lowered(lowered, emulation, plan.reasons)


def lower_to_integers(model: ir.Model, variant: Variant, images: Array) -> ir.Model:
    """Write a two-pass graph in integers for onnxruntime's CPU, the backward among them.

    Args:
        model: A two-pass graph for the target ``cpu`` and this variant, its parts marked. Not modified.
        variant: Which passes are in int8; the backward goes with the first.
        images: (N, C, H, W) float32 in [0, 1], real ones, for the ranges.

    Returns:
        The graph; ``image`` and all outputs are float32.

    Raises:
        GraphError: Not a two-pass graph in float32.
    """
    _refuse_half_precision(model)
    graph = model.clone()
    passes = variant.int8_passes
    parts = passes | ({Part.BACKWARD} if Part.FIRST in passes else frozenset())
    IntegerPass(plan_integers(graph, parts, images, method=variant.ranges))(graph)
    metadata = {**graph.metadata_props, PRECISION_KEY: variant.label}
    label_and_check(graph, what="two-pass", metadata=metadata)
    return graph


def _refuse_half_precision(model: ir.Model) -> None:
    """Refuse a graph that computes in half precision before we lower it: there is no float32 to compare with.

    Raises:
        GraphError: Some weight is fp16 or bf16.
    """
    if lowered := [name for name, value in model.graph.initializers.items() if value.dtype in HALF]:
        raise GraphError(
            f"{len(lowered)} weights are in half precision already, {lowered[0]!r} for example",
            hint="give the float32 classifier; --precision fp16 or bf16 lowers it",
        )
