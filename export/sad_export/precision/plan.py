"""Decide the element type of every node.

What is fragile stays float32, for one of seven reasons:

1. Its part: x = (image − mean) / std and x + η·n(S) are in image space, where rounding is a perturbation of
   its own; they are few elementwise nodes. n(S) divides by sums of squares.
2. It sums over many elements (softmax, reductions, norms): the partial sums leave fp16's range.
3. A constant that it reads does not fit: beyond 65504, or so small that it is gone or coarse (an ε of 10⁻⁵).
   A weight is never clamped and never becomes infinite.
4. The operator has no such type, in ONNX or in TensorRT.
5. It finds a maximum again by comparing for equality, or computes that maximum. A runtime may leave one side
   of the comparison unrounded (onnxruntime's CPU does), and then nothing is equal and the gradient is lost.
   In float32 both sides come from one Cast of the pool's input.
6. It is in the stem, before the first MaxPool. Neighbours in a photograph are nearly equal, rounded they tie,
   and a tie sends the gradient to another pixel.
7. It is the ArgMax that decides whose gradient S is: the label has to be that of ``plain_logits``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from sad_runtime.choices import Precision

from ..graph.operators import CLASSIFIED, FLOAT32_ONLY, MAXIMA, NOT_IN_BF16, SUMS, WITH_BIAS
from ..graph.values import constant_array
from ..parts import Part, parts_of
from .variant import Variant

_EQUALITY = "compared for equality"
_STEM = "in the stem, before the first MaxPool"
_STEM_CONVOLUTIONS = 3
_BIAS_INPUT = 2
_FP16_LARGEST = float(np.finfo(np.float16).max)
_FP16_SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The element type of every node.

    Attributes:
        precisions: By node.
        reasons: Why a node of a lowered pass stays float32, by the node's name.
    """

    precisions: Mapping[ir.Node, Precision]
    reasons: Mapping[str, str]


def plan_precision(graph: ir.Graph, variant: Variant) -> Plan:
    """Decide the element type of every node of a float32 two-pass graph.

    Args:
        graph: With its parts marked.
        variant: What is wanted.

    Raises:
        GraphError: Not a two-pass graph.
    """
    of_part = variant.of_part
    precisions, reasons = {}, {}
    parts = parts_of(graph)
    known = {**dict.fromkeys(_stem(parts), _STEM), **dict.fromkeys(_compared(parts), _EQUALITY)}
    for node, part in parts.items():
        precision = of_part[part]
        if precision is not Precision.FP32 and (reason := known.get(node) or why_float32(node, precision)):
            precision = Precision.FP32
            reasons[node.name or node.op_type] = reason
        precisions[node] = precision
    return Plan(precisions, reasons)


def _stem(parts: Mapping[ir.Node, Part]) -> set[ir.Node]:
    """What the first pass computes before its first MaxPool, if that is near the image."""
    pool = next((n for n, part in parts.items() if part is Part.FIRST and n.op_type == "MaxPool"), None)
    if pool is None:
        return set()
    stem = _ancestors(pool.inputs[0])
    convolutions = sum(node.op_type == "Conv" for node in stem)
    return stem if convolutions <= _STEM_CONVOLUTIONS else set()


def _ancestors(value: ir.Value | None) -> set[ir.Node]:
    """The nodes that a value is computed by."""
    found: set[ir.Node] = set()
    waiting = [value.producer() if value is not None else None]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [source.producer() for source in node.inputs if source is not None]
    return found


def _compared(parts: Mapping[ir.Node, Part]) -> set[ir.Node]:
    """The backward's comparisons for equality, what brings forward values to them, and the maxima."""
    found: set[ir.Node] = set()
    waiting = [node for node, part in parts.items() if part is Part.BACKWARD and _compares_floats(node)]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and (parts[producer] is Part.BACKWARD or producer.op_type in MAXIMA):
                waiting.append(producer)
    return found


def _compares_floats(node: ir.Node) -> bool:
    return node.op_type == "Equal" and any(
        value is not None and value.dtype == ir.DataType.FLOAT for value in node.inputs
    )


def why_float32(node: ir.Node, precision: Precision) -> str | None:
    """Why a node must stay float32, or None if it can be lowered."""
    if node.domain != "":
        return "not a standard operator"
    if node.op_type not in CLASSIFIED:
        return "an operator of which nothing is known"
    if node.op_type in FLOAT32_ONLY:
        return "the operator is for float32"
    if node.op_type == "ArgMax":
        return "it decides whose gradient is taken"
    if node.op_type in SUMS:
        return "a sum over many elements"
    if precision is Precision.BF16 and node.op_type in NOT_IN_BF16:
        return "not in bf16, by the standard or in TensorRT"
    for i, value in enumerate(node.inputs):
        array = constant_array(value)
        if value is None or array is None or value.dtype != ir.DataType.FLOAT:
            continue
        is_bias = i == _BIAS_INPUT and node.op_type in WITH_BIAS
        if reason := _misfit(array, precision, is_bias=is_bias):
            return f"constant {value.name!r} {reason}"
    return None


def _misfit(array: np.ndarray[Any, Any], precision: Precision, *, is_bias: bool) -> str | None:
    """Why a constant cannot be rounded; infinities and zeros stay what they are."""
    sizes = np.abs(array[np.isfinite(array)])
    largest = float(sizes.max(initial=0.0))
    if precision is Precision.BF16:
        fits = np.isfinite(np.float32(ml_dtypes.bfloat16(largest)))
        return None if fits else f"reaches {largest:.3g}, beyond bf16"
    if largest > _FP16_LARGEST:
        return f"reaches {largest:.3g}, beyond fp16"
    # What is added to sums of products may vanish beside them; a factor or an ε may not.
    if 0 < largest < _FP16_SMALLEST_NORMAL and not is_bias:
        return f"is at most {largest:.3g}, which fp16 holds coarsely or not at all"
    return None
