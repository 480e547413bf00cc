"""A float32 two-pass graph in the precisions of a variant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import onnx
import onnx.version_converter
import onnx_ir as ir

from sad_runtime.graph_metadata import PREFIX

from ..graph.errors import GraphError
from ..graph.expression import Array
from ..graph.write import serialise_checked
from .int8 import IntegerPass, plan_integers, simulate_integers
from .lower_pass import LowerPrecisionPass
from .parts import Part
from .plan import plan_precision
from .scale import scale_gradient
from .variant import Variant

PRECISION_KEY = f"{PREFIX}precision"
"""Metadata key of a graph that holds its variant's label."""

_BF16_OPSET = 22
"""Conv, the pools and most activations take bf16 from here on."""


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A graph in lower precision.

    Attributes:
        typed: The graph to deploy.
        rounding: Its float32 twin for verification: every value is rounded as the typed one rounds it.
        kept: Why nodes of the lowered passes stay float32, by name.
    """

    typed: onnx.ModelProto
    rounding: onnx.ModelProto
    kept: Mapping[str, str]


def lower(
    model: onnx.ModelProto,
    variant: Variant,
    *,
    gradient_scales: Mapping[str, float] | None = None,
    images: Array | None = None,
) -> Lowered:
    """Write a two-pass graph in lower precision.

    Args:
        model: As :func:`sad_export.two_pass` returns it, for the target ``portable`` and this
            variant. Not modified.
        variant: Which precisions.
        gradient_scales: Of :func:`gradient_scales`, for a backward in fp16.
        images: (N, C, H, W) float32 in [0, 1], real ones, for the ranges of int8.

    Returns:
        The graph and its twin. ``image`` and all outputs are float32 in both.

    Raises:
        GraphError: Not a two-pass graph in float32, or one that is too old for bf16.
    """
    refuse_half_precision(model)
    if variant.uses_bf16:
        model = _in_opset(model, _BF16_OPSET)
    scaled = ir.from_proto(model)
    scale_gradient(scaled.graph, gradient_scales or {})
    if variant.uses_int8:
        if images is None:
            raise GraphError("int8 needs images for its ranges")
        simulate_integers(scaled, variant.int8_passes, images, method=variant.ranges)
    both: Any = ir.to_proto(scaled)
    typed, rounding = ir.from_proto(both), ir.from_proto(both)
    plan = plan_precision(typed.graph, variant)
    LowerPrecisionPass(plan)(typed)
    LowerPrecisionPass(plan_precision(rounding.graph, variant), rounding=True)(rounding)
    metadata = {**typed.metadata_props, PRECISION_KEY: variant.label}
    written = [serialise_checked(graph, what="two-pass", metadata=metadata) for graph in (typed, rounding)]
    return Lowered(written[0], written[1], plan.reasons)


def lower_to_integers(model: onnx.ModelProto, variant: Variant, images: Array) -> onnx.ModelProto:
    """Write a two-pass graph in integers for onnxruntime's CPU, the backward among them.

    Args:
        model: As :func:`sad_export.two_pass` returns it for the target ``int8``. Not modified.
        variant: Which passes are in int8; the backward goes with the first.
        images: (N, C, H, W) float32 in [0, 1], real ones, for the ranges.

    Returns:
        The graph; ``image`` and all outputs are float32.

    Raises:
        GraphError: Not a two-pass graph in float32.
    """
    refuse_half_precision(model)
    graph = ir.from_proto(model)
    passes = variant.int8_passes
    parts = passes | ({Part.BACKWARD} if Part.FIRST in passes else frozenset())
    IntegerPass(plan_integers(graph, parts, images, method=variant.ranges))(graph)
    metadata = {**graph.metadata_props, PRECISION_KEY: variant.label}
    return serialise_checked(graph, what="two-pass", metadata=metadata)


def refuse_half_precision(model: onnx.ModelProto) -> None:
    """Refuse a graph that computes in half precision before we lower it: there is no float32 to compare with.

    Raises:
        GraphError: Some weight is fp16 or bf16.
    """
    kinds = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    if lowered := [tensor.name for tensor in model.graph.initializer if tensor.data_type in kinds]:
        raise GraphError(
            f"{len(lowered)} weights are in half precision already, {lowered[0]!r} for example",
            hint="give the float32 classifier; --precision fp16 or bf16 lowers it",
        )


def _in_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    (have,) = (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if have >= version:
        return model
    try:
        return onnx.version_converter.convert_version(model, version)
    except Exception as error:  # a plain RuntimeError out of the converter's C++
        raise GraphError(
            f"bf16 needs opset {version}, and this graph of opset {have} cannot be brought there: {error}",
            hint=f"export the classifier with opset {version}, or use --precision fp16",
        ) from error
