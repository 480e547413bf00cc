"""Run what :func:`sad_export.input_gradient` wrote and compare it with its forward graph.

1. It runs, with one image, and with three if its batch is dynamic.
2. ``logits`` are the forward graph's.
3. ``gradient`` is the slope of the largest logit, along the image or the value that it is taken at; not
   checked where values are rounded, to codes or to half precision: between them are no slopes to measure.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sad_runtime.choices import Objective
from sad_runtime.verification.agreement import relative_l2

from .gradient import LARGEST, Seed
from .graph.expression import Array
from .graph.session import cpu_session
from .loading import FileForm, ForwardGraph
from .reference import INPUT_TYPES, logit_of, reference, refuse_probabilities, rounds, slope_error
from .trial_images import smooth_noise
from .verify import REPORT, VerificationError
from .verify_forward import LOGITS_TOLERANCE, SLOPE_TOLERANCE

HALF_LOGITS_TOLERANCE = 1e-2


Space = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation, per channel, that were put in front of a classifier."""


def verify_gradient(
    graph: Path,
    forward: Path,
    *,
    logits: str | None = None,
    form: FileForm = FileForm(),  # noqa: B008 -- frozen
    seed: Seed = LARGEST,
    space: Space | None = None,
    tail: ir.Model | None = None,
) -> None:
    """Check a gradient graph, on noise.

    Args:
        graph: The file to check.
        forward: The one it was made from.
        logits: Name of the forward graph's logits, where it has several outputs.
        form: How the file's own input and output differ from the graph's.
        seed: What it is the gradient of.
        space: What was put in front of the classifier.
        tail: For a gradient at another value than the image: the classifier with that value as a further
            input, by :func:`tail_from`.

    Raises:
        VerificationError: It does not run, or contradicts the forward graph.
    """
    trial = Trial.of(graph, forward, seed)
    got = trial.run(graph, forward)
    x, first, gradient = trial.images, got["logits"], got["gradient"]
    classifier = reference_in(space, forward, x, logits=logits, form=form)
    problems = logits_problems(first, trial, forward, classifier)
    if not np.isfinite(gradient).all():
        problems.append("the gradient is not finite")
    elif not trial.is_half and not rounds(graph):
        objective = trial.objective(first, seed)
        if tail is None:
            phi, where = classifier, x
        else:
            phi, where = _of_activation(tail, x), got["activation"]
        error = slope_error(phi, where.astype(np.float64), gradient.astype(np.float64), objective)
        if not error <= SLOPE_TOLERANCE:
            problems.append(f"error of the slope along the gradient {error:.3g} > {SLOPE_TOLERANCE:.3g}")
    refuse(problems, forward)


def logits_problems(first: Array, trial: Trial, forward: Path, phi: Callable[[Array], Array]) -> list[str]:
    """What is wrong with the logits of a graph on trial images; ``phi`` is :func:`reference_in`.

    Raises:
        VerificationError: They are probabilities.
    """
    refuse_probabilities(first, forward)
    tolerance = HALF_LOGITS_TOLERANCE if trial.is_half else LOGITS_TOLERANCE
    wanted = phi(trial.images)
    # A head that was never trained may be all zeros.
    error = 0.0 if np.array_equal(first, wanted) else relative_l2(first, wanted)
    return [] if error <= tolerance else [f"relative L2 error of the logits {error:.3g} > {tolerance:.3g}"]


def refuse(problems: Sequence[str], forward: Path) -> None:
    """Refuse a graph with problems.

    Raises:
        VerificationError: There are some.
    """
    if problems:
        raise VerificationError(f"the gradient contradicts {forward}: {'; '.join(problems)}", hint=REPORT)


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a graph is run on.

    Attributes:
        images: (N, C, H, W), noise.
        sizes: How many at once.
        labels: (N,).
        cotangents: (N, K).
        input_name: Of the further input, if there is one.
    """

    images: Array
    sizes: tuple[int, ...]
    labels: Array
    cotangents: Array
    input_name: str | None

    @classmethod
    def of(cls, graph: Path, forward: Path, seed: Seed) -> Trial:
        """For a graph with these inputs.

        Raises:
            VerificationError: onnxruntime cannot load it.
        """
        with _must_run(forward):
            session = cpu_session(graph)
        image, *_ = session.get_inputs()
        batch, *chw = image.shape
        sizes = (batch,) if isinstance(batch, int) else (1, 3)
        x = smooth_noise(sum(sizes), *chw).astype(INPUT_TYPES[image.type])
        classes = session.get_outputs()[0].shape[1]
        cotangents = np.random.default_rng(0).standard_normal((len(x), classes)).astype(x.dtype)
        return cls(x, sizes, np.arange(len(x)) % classes, cotangents, seed.input_name)

    @property
    def is_half(self) -> bool:
        """Whether the graph computes in half precision."""
        return bool(self.images.dtype == np.float16)

    def run(
        self, graph: Path, forward: Path, images: Array | None = None, **further: Array
    ) -> dict[str, Array]:
        """All outputs of a graph, by name.

        Args:
            graph: The file.
            forward: For the message.
            images: Others than the trial's.
            **further: Another further input than the trial's.

        Raises:
            VerificationError: It does not run.
        """
        x = self.images if images is None else images
        given = {"label": self.labels, "cotangent": self.cotangents}
        feeds = further or ({self.input_name: given[self.input_name]} if self.input_name else {})
        ends = np.cumsum(self.sizes)[:-1]
        with _must_run(forward):
            session = cpu_session(graph)
            feeds = {session.get_inputs()[0].name: x, **feeds}
            split = {name: np.split(array, ends) for name, array in feeds.items()}
            names = [output.name for output in session.get_outputs()]
            parts = [
                session.run(names, {name: arrays[i] for name, arrays in split.items()})
                for i in range(len(self.sizes))
            ]
        return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}

    def objective(self, first: Array, seed: Seed) -> Callable[[Array], Array]:
        """What a gradient is of, from the logits (N, K); ``first`` are those of the images."""
        objectives: dict[Objective, Callable[[Array], Array]] = {
            Objective.LARGEST: logit_of(first.argmax(1)),
            Objective.CLASS: logit_of(np.full(len(first), seed.index)),
            Objective.LABEL: logit_of(self.labels),
            Objective.COTANGENT: lambda logits: (logits * self.cotangents).sum(1),
            Objective.LOSS: lambda logits: _cross_entropy(logits, self.labels),
        }
        return objectives[seed.objective]


def tail_from(graph: ForwardGraph, at: ir.Value) -> ir.Model:
    """A classifier with one of its values as a further input: what comes before it is not used any more.

    Args:
        graph: A copy of it, which is changed.
        at: The value in it.
    """
    given = ir.Value(name=f"{at.name}/given", shape=at.shape, type=at.type)
    for use in list(at.uses()):
        use.node.replace_input_with(use.idx, given)
    graph.model.graph.inputs.append(given)
    return graph.model


def _of_activation(tail: ir.Model, images: Array) -> Callable[[Array], Array]:
    """The logits as a function of the value that the tail begins with."""
    session = cpu_session(tail)
    image, at = session.get_inputs()
    size = image.shape[0] if isinstance(image.shape[0], int) else 1

    def phi(activation: Array) -> Array:
        parts = [
            session.run(
                None,
                {image.name: images[i : i + size], at.name: activation[i : i + size].astype(images.dtype)},
            )[0]
            for i in range(0, len(images), size)
        ]
        found: Array = np.concatenate(parts)
        return found

    return phi


def reference_in(
    space: Space | None, forward: Path, x: Array, *, logits: str | None, form: FileForm
) -> Callable[[Array], Array]:
    """:func:`~.reference.reference` of images before ``space``, if that was put in front."""
    if space is None:
        return reference(forward, x, logits=logits, form=form)
    mean, std = (np.asarray(each, dtype=np.float64).reshape(1, -1, 1, 1) for each in space)
    inner = reference(forward, ((x - mean) / std).astype(x.dtype), logits=logits, form=form)
    return lambda x: inner((x - mean) / std)


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
