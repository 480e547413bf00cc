"""A forward graph as a function, to compare with what was made from it: its logits, and their slopes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from sad_runtime.prediction import kind_of_probabilities

from .graph.expression import Array
from .graph.session import cpu_session
from .loading import FileForm, Reading, load_classifier
from .verify import REPORT, VerificationError

INPUT_TYPES = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}
"""onnxruntime's names of what an image may be."""

# Steps h, relative to ‖x‖: the large ones cross kinks, the small ones drown in float32's rounding. Where that
# happens depends on the network and the size of its image. Each image is judged by its best one; a wrong
# gradient is wrong at all of them.
_RELATIVE_STEPS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6)


_AGREES, _HALF_AGREES = 1e-3, 2e-2
"""Largest difference of what a file gives from what was read from it, as a part of the largest output."""


def reference(forward: Path, x: Array, *, logits: str | None, form: FileForm) -> Callable[[Array], Array]:
    """The forward graph's logits as a function of (N, C, H, W) images.

    Where the file ends in probabilities, takes bytes or computes in half precision, the logits are those of
    the graph as it was read, whose outputs are compared with the file's own.

    Args:
        forward: The file.
        x: Images to compare them on.
        logits: As given to :func:`sad_export.two_pass`.
        form: How the file's own input and output differ from those of the graph as it was read.

    Raises:
        VerificationError: The file gives something else than the graph that was read from it, or nothing
            that can be compared.
    """
    plain = cpu_session(forward)
    stated = [value.name for value in plain.get_outputs()]
    name = logits or stated[0]
    file = plain if name in stated else cpu_session(_with_output(forward, name))
    _refuse_what_cannot_be_compared(file, name, form.input_of(form.taken_exactly(x)), forward)
    if not form.has_other_numbers:
        return lambda x: run_rows(file, name, form.input_of(x))
    height, width = x.shape[2:]
    reading = Reading(logits, (height, width), in_float32=form.half, keep_output=True)
    read = cpu_session(load_classifier(forward, reading).model)
    taken, *probabilities = (value.name for value in read.get_outputs())
    x = form.taken_exactly(x)
    theirs = run_rows(file, name, form.input_of(x))
    ours = run_rows(read, probabilities[0] if probabilities else taken, x)
    scale = max(float(np.abs(theirs).max()), 1e-30)
    if not np.abs(ours - theirs).max() <= (_HALF_AGREES if form.half else _AGREES) * scale:
        raise VerificationError(f"{forward} gives something else than the graph read from it", hint=REPORT)
    return lambda x: run_rows(read, taken, x)


def _refuse_what_cannot_be_compared(
    file: onnxruntime.InferenceSession, name: str, x: Array, forward: Path
) -> None:
    """Refuse a file whose answers are no numbers, or follow from more than the image."""
    (image,) = file.get_inputs()
    rows = run_rows(file, name, x)
    if not np.isfinite(rows).all():
        raise VerificationError(
            f"{forward} itself gives values that are not finite, on noise", hint="look at its weights"
        )
    if isinstance(image.shape[0], int):
        return
    together = file.run([name], {image.name: x.astype(INPUT_TYPES[image.type])})[0].reshape(rows.shape)
    if np.abs(together - rows).max() > _HALF_AGREES * np.abs(rows).max():
        raise VerificationError(
            f"{forward} computes the images of a batch together: alone, an image has other logits",
            hint="export it in eval mode, or with a batch of 1",
        )


def run_rows(session: onnxruntime.InferenceSession, output: str, x: Array) -> Array:
    """One output, (N, K), for a batch of images, one image at a time, or as many as a static batch says."""
    (image,) = session.get_inputs()
    batch = image.shape[0] if isinstance(image.shape[0], int) else 1
    # The last ones are repeated until they fill a static batch.
    padded = np.concatenate([x, np.repeat(x[-1:], -len(x) % batch, axis=0)])
    parts = [padded[i : i + batch].astype(INPUT_TYPES[image.type]) for i in range(0, len(padded), batch)]
    rows = [session.run([output], {image.name: part})[0].reshape(batch, -1) for part in parts]
    found: Array = np.concatenate(rows)[: len(x)]
    return found


def _with_output(forward: Path, name: str) -> ir.Model:
    """The file's graph with one of its inner values as a further output."""
    model = ir.load(forward)
    ir.external_data.load_to_model(model)
    model.graph.outputs.append(next(v for node in model.graph for v in node.outputs if v.name == name))
    return model


def refuse_probabilities(outputs: Array, forward: Path) -> None:
    """Refuse outputs that are probabilities in a form that no tail was recognised in.

    Args:
        outputs: (N, K), of several images.
        forward: For the message.

    Raises:
        VerificationError: They are.
    """
    if kind := kind_of_probabilities(outputs):
        raise VerificationError(
            f"{forward} gives {kind}, not logits, for every image: their gradient vanishes where the network "
            "is sure",
            hint="--logits NAME takes the value before them, by its name in the graph",
        )


def logit_of(labels: Array) -> Callable[[Array], Array]:
    """The objective that is the logit of one class an image, (N,)."""
    return lambda logits: np.asarray(logits[np.arange(len(labels)), labels])


def rounds(graph: Path) -> bool:
    """Whether a graph rounds values to codes, between which there are no slopes to measure."""
    return any(node.op_type == "QuantizeLinear" for node in ir.load(graph).graph)


def slope_error(
    phi: Callable[[Array], Array], x: Array, saliency: Array, objective: Callable[[Array], Array]
) -> float:
    """|measured slope of an objective along its gradient S / ‖S‖ − 1|, the median over the images.

    A saliency of zero says that the objective is flat there, so along a random direction it must not change:
    its error is 0 or infinite.

    Args:
        phi: (N, C, H, W) → logits (N, K).
        x: (N, C, H, W) float64.
        saliency: Likewise.
        objective: Logits (N, K) → what S is the gradient of (N,).
    """
    slopes, norms = measured_slopes(phi, x, saliency, objective)
    errors = np.min(np.abs(np.divide(slopes, np.where(norms > 0, norms, 1.0)) - 1), axis=0)
    # A large step crosses kinks, and a small one drowns, so a slope shows itself at most of them.
    has_slope = np.mean(np.not_equal(slopes, 0), axis=0) > 0.5
    return float(np.median(np.where(norms > 0, errors, np.where(has_slope, np.inf, 0.0))))


def measured_slopes(
    phi: Callable[[Array], Array], x: Array, saliency: Array, objective: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """Slopes of an objective along S / ‖S‖ by central differences, a row a step, (steps, N); and ‖S‖ (N,).

    Arguments are those of :func:`slope_error`.
    """
    axes = tuple(range(1, x.ndim))
    norms = np.sqrt((saliency**2).sum(axes, keepdims=True))
    noise = np.random.default_rng(0).standard_normal(x.shape)
    noise /= np.sqrt(np.square(noise).sum(axes, keepdims=True))
    direction = np.where(norms > 0, saliency / np.where(norms > 0, norms, 1.0), noise)
    size = np.sqrt((x**2).sum(axes, keepdims=True))
    slopes = []
    for relative_step in _RELATIVE_STEPS:
        step = relative_step * np.where(size > 0, size, 1.0)
        rise = objective(phi(x + step * direction)) - objective(phi(x - step * direction))
        slopes.append(rise / (2 * step.reshape(-1)))
    return np.array(slopes), norms.reshape(-1)
