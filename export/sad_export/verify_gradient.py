"""Run what :func:`sad_export.input_gradient` wrote and compare it with its forward graph.

1. It runs, with one image, and with three if its batch is dynamic.
2. ``logits`` are the forward graph's.
3. ``gradient`` is the slope of the largest logit; not checked where values are rounded, to codes or to half
   precision, between which there are no slopes to measure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from sad_runtime.choices import Objective
from sad_runtime.verification.agreement import relative_l2

from .gradient import LARGEST, Seed
from .graph.expression import Array
from .graph.session import cpu_session
from .loading import FileForm
from .reference import INPUT_TYPES, logit_of, reference, refuse_probabilities, rounds, slope_error
from .trial_images import smooth_noise
from .verify import REPORT, VerificationError
from .verify_forward import LOGITS_TOLERANCE, SLOPE_TOLERANCE

_HALF_LOGITS_TOLERANCE = 1e-2


def verify_gradient(
    graph: Path,
    forward: Path,
    *,
    logits: str | None = None,
    form: FileForm = FileForm(),  # noqa: B008 -- frozen
    seed: Seed = LARGEST,
) -> None:
    """Check a gradient graph, on noise.

    Args:
        graph: The file to check.
        forward: The one it was made from.
        logits: Name of the forward graph's logits, where it has several outputs.
        form: How the file's own input and output differ from the graph's.
        seed: What it is the gradient of.

    Raises:
        VerificationError: It does not run, or contradicts the forward graph.
    """
    x, first, gradient, objective = _run(graph, forward, seed)
    phi = reference(forward, x, logits=logits, form=form)
    refuse_probabilities(first, forward)
    half = x.dtype == np.float16
    problems = []
    tolerance = _HALF_LOGITS_TOLERANCE if half else LOGITS_TOLERANCE
    if not (error := relative_l2(first, phi(x))) <= tolerance:
        problems.append(f"relative L2 error of the logits {error:.3g} > {tolerance:.3g}")
    if not np.isfinite(gradient).all():
        problems.append("the gradient is not finite")
    elif not half and not rounds(graph):
        error = slope_error(phi, x.astype(np.float64), gradient.astype(np.float64), objective)
        if not error <= SLOPE_TOLERANCE:
            problems.append(f"error of the slope along the gradient {error:.3g} > {SLOPE_TOLERANCE:.3g}")
    if problems:
        raise VerificationError(f"the gradient contradicts {forward}: {'; '.join(problems)}", hint=REPORT)


def _run(graph: Path, forward: Path, seed: Seed) -> tuple[Array, Array, Array, Callable[[Array], Array]]:
    """Images, logits and gradient of a gradient graph, and what that is the gradient of, from the logits."""
    with _must_run(forward):
        session = cpu_session(graph)
    image, *given = session.get_inputs()
    batch, *chw = image.shape
    sizes = [batch] if isinstance(batch, int) else [1, 3]
    x = smooth_noise(sum(sizes), *chw).astype(INPUT_TYPES[image.type])
    classes = session.get_outputs()[0].shape[1]
    labels = np.arange(len(x)) % classes
    cotangents = np.random.default_rng(0).standard_normal((len(x), classes)).astype(x.dtype)
    further = labels if seed.input_name == "label" else cotangents
    ends = np.cumsum(sizes)[:-1]
    with _must_run(forward):
        got = [
            session.run(["logits", "gradient"], {image.name: a, **({given[0].name: b} if given else {})})
            for a, b in zip(np.split(x, ends), np.split(further, ends), strict=True)
        ]
    first, gradient = (np.concatenate([part[i] for part in got]) for i in range(2))
    objectives: dict[Objective, Callable[[Array], Array]] = {
        Objective.LARGEST: logit_of(first.argmax(1)),
        Objective.CLASS: logit_of(np.full(len(x), seed.index)),
        Objective.LABEL: logit_of(labels),
        Objective.COTANGENT: lambda logits: (logits * cotangents).sum(1),
        Objective.LOSS: lambda logits: _cross_entropy(logits, labels),
    }
    return x, first, gradient, objectives[seed.objective]


def _cross_entropy(logits: Array, labels: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return np.asarray(np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels])


@contextlib.contextmanager
def _must_run(forward: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime has classes of its own, derived from nothing nearer
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise VerificationError(
            f"the gradient of {forward} does not run in onnxruntime: {reason}", hint=REPORT
        ) from error
