"""Ranges of values over real images, by onnxruntime's own calibration: percentiles or minimal entropy."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...graph.expression import Array
from ...graph.session import cpu_session

Range = tuple[float, float]

_IMAGES_AT_ONCE = 2
_ELEMENTS = 2**17
"""Of each value and run; more of them move no percentile that we take."""

_BINS = 2048
ACTIVATIONS, GRADIENTS = 99.99, 99.9
"""Percent of the elements that a range holds; gradients have longer tails (benchmarks/precision.py)."""
_ENTROPY_BINS = 128


def measured_ranges(
    model: ir.Model,
    percentiles: Mapping[ir.Value, float],
    images: Array,
    *,
    method: str = "percentile",
) -> Mapping[ir.Value, Range]:
    """Lowest and highest number that each value should represent.

    Args:
        model: A float32 graph with the input ``image``; not modified.
        percentiles: Which of its values, floats, and how much of the elements of each its range holds, in
            percent.
        images: (N, C, H, W) float32 in [0, 1], real ones.
        method: ``percentile``, or ``entropy`` (the histogram of the codes diverges least).

    Returns:
        The ranges.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    if not percentiles:
        return {}
    collectors = {
        percentile: HistogramCollector(
            method=method,
            symmetric=False,
            num_bins=_BINS,
            num_quantized_bins=_ENTROPY_BINS,
            percentile=percentile,
            scenario="same",
        )
        for percentile in set(percentiles.values())
    }
    of_name = {str(value.name): percentile for value, percentile in percentiles.items()}
    results: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress, and stdout is for results
        for found in _runs(model, list(percentiles), images):
            for name, array in found.items():
                collectors[of_name[name]].collect({name: _thinned(array)})
        for collector in collectors.values():
            results |= collector.compute_collection_result()
    return {
        value: (float(results[str(value.name)][0]), float(results[str(value.name)][1]))
        for value in percentiles
    }


def evaluated(model: ir.Model, values: Sequence[ir.Value], image: Array) -> Mapping[ir.Value, Array]:
    """Values of a graph for one batch of images."""
    if not values:
        return {}
    (found,) = _runs(model, values, image, at_once=len(image))
    return {value: found[str(value.name)] for value in values}


def _runs(
    model: ir.Model, values: Sequence[ir.Value], images: Array, *, at_once: int = _IMAGES_AT_ONCE
) -> Iterator[dict[str, Array]]:
    outputs = list(model.graph.outputs)
    model.graph.outputs[:] = list(dict.fromkeys(values))
    try:
        session = cpu_session(model)
    finally:
        model.graph.outputs[:] = outputs
    names = [output.name for output in session.get_outputs()]
    for start in range(0, len(images), at_once):
        yield dict(zip(names, session.run(None, {"image": images[start : start + at_once]}), strict=True))


def _thinned(array: Array) -> Array:
    flat = array.reshape(-1)
    step = max(1, flat.size // _ELEMENTS) | 1  # odd: an even step would see every other column only
    return np.ascontiguousarray(flat[::step])
