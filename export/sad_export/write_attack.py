"""An attack graph as a verified file.

1. It runs, with one image and with three.
2. ``logits`` are those of the file that is attacked.
3. ``gradient`` is the slope of the loss along it, of the float32 graph that the file is read as. The plain
   way is checked on the first pass; the constant way on the second, with η·n(S) as it is at the image; the
   exact way through both. Where a network is piecewise linear, S jumps from piece to piece: the loss then has
   no slope to measure through S, and the exact gradient is the constant one, which has.

Slopes are not measured where the file rounds values to codes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sad_runtime.choices import Objective, Way, choose
from sad_runtime.files import Destination, written_whole
from sad_runtime.verification.agreement import relative_l2

from .attack_graph import attack_graph, is_two_pass, scaled_saliency
from .gradient import Seed
from .graph.expression import Array
from .graph.session import cpu_session
from .graph.values import shape_of, text_of
from .graph.write import save_graph
from .loading import ForwardGraph, Reading, load_classifier, warn
from .loading.read import read
from .reference import measured_slopes, rounds, run_rows, slope_error
from .verify_forward import LOGITS_TOLERANCE, SLOPE_TOLERANCE
from .verify_gradient import HALF_LOGITS_TOLERANCE, Trial, refuse, tail_from
from .write_gradient import GradientExport

_SAME = 0.9999
"""Cosine from which on the exact gradient is the constant one."""


def write_attack(
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    way: str,
    of: str = Objective.LOSS,
    logits: str | None = None,
    image_size: tuple[int, int] | None = None,
    target: str = "portable",
    notice: Callable[[str], None] = warn,
) -> GradientExport:
    """Write :func:`attack_graph` of a file, run it and compare it with the file.

    Args:
        file: A two-pass graph or, for ``plain``, any classifier.
        out: Where the graph goes.
        way: See :func:`attack_graph`, like the others.
        of: Likewise.
        logits: Likewise.
        image_size: Likewise.
        target: Likewise.
        notice: Called with a line for everything that is taken otherwise, and for what could not be checked.

    Raises:
        UserError: The file or an argument cannot be used, or the check failed; nothing was written.
    """
    Destination.of(out).check()
    chosen, source = choose(Way, way, "way"), Path(file)
    graph = read(
        attack_graph(
            source, way=way, of=of, logits=logits, image_size=image_size, target=target, notice=notice
        )
    )
    if logits is None and is_two_pass(read(source)):
        logits = "plain_logits" if chosen is Way.PLAIN else "logits"
    reading = Reading(logits, image_size, in_float32=True)
    with written_whole(out, regular=False) as draft:
        save_graph(graph, draft)
        _verify(draft, source, reading, chosen, Seed.of(of), notice)
        size = draft.stat().st_size
    outputs = (f"{value.name} {text_of(shape_of(value))}" for value in graph.graph.outputs)
    return GradientExport(Path(out), size, tuple(outputs))


def _verify(
    graph: Path, file: Path, reading: Reading, way: Way, seed: Seed, notice: Callable[[str], None]
) -> None:
    """Raises VerificationError."""
    trial = Trial.of(graph, file, seed)
    got = trial.run(graph, file)
    x, first, gradient = trial.images, got["logits"], got["gradient"].astype(np.float64)
    own = cpu_session(file)
    name = reading.logits or own.get_outputs()[0].name
    loaded = load_classifier(file, reading)
    tolerance = HALF_LOGITS_TOLERANCE if loaded.form.half else LOGITS_TOLERANCE
    problems = []
    if name in [value.name for value in own.get_outputs()] and not loaded.form.has_tail:
        error = relative_l2(first, run_rows(own, name, loaded.form.input_of(x)))
        if error > tolerance:
            problems.append(f"relative L2 error of the logits {error:.3g} > {tolerance:.3g}")
    if not np.isfinite(gradient).all():
        problems.append("the gradient is not finite")
    elif not rounds(graph):
        objective = trial.objective(first, seed)
        if way is Way.EXACT and not _is_constant(file, reading, trial, seed, gradient):
            problems += _problems_through(loaded, x, gradient, objective, notice)
        else:
            held = way is not Way.PLAIN
            phi = _second_pass(loaded, x) if held else _whole(loaded)
            problems += _problems_of(slope_error(phi, x.astype(np.float64), gradient, objective))
    refuse(problems, file)


def _problems_of(error: float) -> list[str]:
    if error <= SLOPE_TOLERANCE:
        return []
    return [f"error of the slope along the gradient {error:.3g} > {SLOPE_TOLERANCE:.3g}"]


def _is_constant(file: Path, reading: Reading, trial: Trial, seed: Seed, gradient: Array) -> bool:
    """Whether an exact gradient is the one with S held constant."""
    constant = attack_graph(
        file, way=Way.CONSTANT, of=seed.word, image_size=reading.image_size, notice=lambda message: None
    )
    session = cpu_session(read(constant))
    given = {"label": trial.labels, "cotangent": trial.cotangents}[str(seed.input_name)]
    feeds = {session.get_inputs()[0].name: trial.images, str(seed.input_name): given}
    other = session.run(["gradient"], feeds)[0].astype(np.float64).reshape(len(gradient), -1)
    mine = gradient.reshape(len(gradient), -1)
    norms = np.linalg.norm(mine, axis=1) * np.linalg.norm(other, axis=1)
    return bool(((mine * other).sum(1) >= _SAME * norms).all())


def _problems_through(
    graph: ForwardGraph,
    x: Array,
    gradient: Array,
    objective: Callable[[Array], Array],
    notice: Callable[[str], None],
) -> list[str]:
    """What is wrong with a gradient through S: where differences settle, it must be their limit."""
    slopes, norms = measured_slopes(_whole(graph), x.astype(np.float64), gradient, objective)
    change = np.abs(np.diff(slopes, axis=0)) / np.maximum(np.abs(slopes[1:]), 1e-30)
    settled = change.min(0) < SLOPE_TOLERANCE / 2
    if not settled.any():
        notice("the gradient through S is not checked: S jumps, so that the loss has no slope to measure")
        return []
    limit = np.take_along_axis(slopes[1:], change.argmin(0)[None], 0)[0]
    errors = np.abs(limit / np.maximum(norms, 1e-30) - 1)
    return _problems_of(float(np.median(errors[settled])))


def _whole(graph: ForwardGraph) -> Callable[[Array], Array]:
    """The logits as a function of the image."""
    session = cpu_session(graph.model)
    name = session.get_outputs()[0].name
    return lambda images: run_rows(session, name, images)


def _second_pass(graph: ForwardGraph, x: Array) -> Callable[[Array], Array]:
    """The logits of the second pass as a function of the image, with η·n(S) as it is at ``x``."""
    copy = graph.copy()
    scaled, _ = scaled_saliency(copy)
    copy.model.graph.outputs.append(scaled)
    whole = cpu_session(copy.model)
    held = whole.run([str(scaled.name)], {whole.get_inputs()[0].name: x})[0]
    copy.model.graph.outputs.pop()
    session = cpu_session(tail_from(copy, scaled))
    image, at = (value.name for value in session.get_inputs())
    name = session.get_outputs()[0].name

    def phi(images: Array) -> Array:
        found: Array = session.run([name], {image: images.astype(x.dtype), at: held})[0]
        return found

    return phi
