"""Run what :func:`sad_export.attribution_graph` wrote and compare it with its equation in numpy.

The gradients in the equation are those of a graph of ``gradient`` alone, written beside it and checked by
:func:`~.verify_gradient.verify_gradient`: at the feature map for Grad-CAM, at each point for the others.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sad_runtime.choices import Method, Objective
from sad_runtime.verification.agreement import relative_l2

from .attributed import bilinear
from .attribution import Attribution
from .feature_map import LAST, value_at
from .gradient import Seed
from .graph.expression import Array
from .graph.write import save_graph
from .input_gradient import differentiated
from .input_space import prepend_input_space
from .loading import ForwardGraph
from .lowering import lowering_for
from .points import integration, noise_pool, noise_stride
from .reference import rounds
from .verify_forward import SLOPE_TOLERANCE
from .verify_gradient import Space, Trial, logits_problems, reference_in, refuse, tail_from, verify_gradient


def verify_attribution(
    graph: Path,
    forward: Path,
    classifier: ForwardGraph,
    attribution: Attribution,
    *,
    logits: str | None = None,
    space: Space | None = None,
) -> None:
    """Check a graph of any method, on noise.

    Args:
        graph: The file to check.
        forward: The one it was made from.
        classifier: What was read from that, unchanged; ``space`` is not in it.
        attribution: What was written.
        logits: Name of the forward graph's logits, where it has several outputs.
        space: What was put in front of the classifier.

    Raises:
        VerificationError: It does not run, or contradicts the forward graph.
    """
    form = classifier.form
    if attribution.chosen is Method.SALIENCY:
        tail = None if attribution.at is None else _tail(classifier, attribution.at, space)
        verify_gradient(
            graph, forward, logits=logits, form=form, seed=attribution.seed, space=space, tail=tail
        )
        return
    trial = Trial.of(graph, forward, attribution.seed)
    got = trial.run(graph, forward)
    classified = reference_in(space, forward, trial.images, logits=logits, form=form)
    problems = logits_problems(got["logits"], trial, forward, classified)
    found = got[attribution.output]
    if not np.isfinite(found).all():
        problems.append(f"the {attribution.output} is not finite")
    elif not trial.is_half and not rounds(graph) and not problems:
        expected = _expected(forward, classifier, attribution, trial, got["logits"], logits, space)
        error = relative_l2(found, expected) if expected.any() else float(np.abs(found).max())
        if not error <= SLOPE_TOLERANCE:
            problems.append(
                f"relative L2 error of the {attribution.output} {error:.3g} > {SLOPE_TOLERANCE:.3g}"
            )
    refuse(problems, forward)


def _expected(
    forward: Path,
    classifier: ForwardGraph,
    attribution: Attribution,
    trial: Trial,
    first: Array,
    logits: str | None,
    space: Space | None,
) -> Array:
    """The equation, with gradients of a graph of their own."""
    method, seed = attribution.chosen, attribution.seed
    further: dict[str, Array] = {}
    if method is not Method.GRADCAM and seed.objective is Objective.LARGEST:
        seed, further = Seed(Objective.LABEL), {"label": first.argmax(1)}
    plain = in_space(classifier.copy(), space)
    tail = at = None
    if method is Method.GRADCAM:
        name = attribution.at or LAST
        at, tail = value_at(plain, name, lambda line: None), _tail(classifier, name, space)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "gradient.onnx"
        save_graph(differentiated(plain, lowering_for(), seed, at=at), file)
        verify_gradient(file, forward, logits=logits, form=classifier.form, seed=seed, space=space, tail=tail)
        if method is Method.GRADCAM:
            got = trial.run(file, forward)
            weighted = got["gradient"].mean((2, 3), keepdims=True) * got["activation"]
            cam = np.maximum(weighted.sum(1, keepdims=True), 0)
            rows, columns = bilinear(cam.shape[2:], trial.images.shape[2:])
            resized: Array = rows @ cam @ columns.T
            return resized

        def gradient(x: Array) -> Array:
            return trial.run(file, forward, x.astype(trial.images.dtype), **further)["gradient"]

        x, settings = trial.images.astype(np.float64), attribution.settings
        if method is Method.INTEGRATED:
            baseline = np.asarray(settings["baseline"], dtype=np.float64).reshape(1, -1, 1, 1)
            points, weights = integration(settings["steps"])
            line = zip(points, weights, strict=True)
            mean = sum(w * gradient(baseline + a * (x - baseline)) for a, w in line)
            return np.asarray((x - baseline) * mean)
        chw, samples = x.shape[1:], settings["samples"]
        pool, stride = noise_pool(settings["noise_seed"], chw, samples), noise_stride(chw, samples)
        sigma = settings["noise"] * np.ptp(x, axis=(1, 2, 3), keepdims=True)
        noisy = (pool[k * stride :][: x[0].size].reshape(1, *chw) for k in range(samples))
        return np.asarray(sum(gradient(x + sigma * epsilon) for epsilon in noisy) / samples)


def in_space(classifier: ForwardGraph, space: Space | None) -> ForwardGraph:
    """The classifier, with mean and standard deviation in front of it if there are any."""
    if space is not None:
        prepend_input_space(classifier, *space)
    return classifier


def _tail(classifier: ForwardGraph, name: str, space: Space | None) -> ir.Model:
    copy = in_space(classifier.copy(), space)
    at = value_at(copy, name, lambda line: None)
    assert at is not None
    return tail_from(copy, at)
