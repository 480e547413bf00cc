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
from .model import load_classifier
from .verify import REPORT, VerificationError

INPUT_TYPES = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}
"""onnxruntime's names of what an image may be."""

# Steps h, relative to ‖x‖: the large ones cross kinks, the small ones drown in float32's rounding. Where that
# happens depends on the network and the size of its image. Each image is judged by its best one; a wrong
# gradient is wrong at all of them.
_RELATIVE_STEPS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6)


def reference(forward: Path, x: Array, *, logits: str | None, has_tail: bool) -> Callable[[Array], Array]:
    """The forward graph's logits as a function of (N, C, H, W) images, in its own input space.

    Where it ends in probabilities, the logits are those of the graph as it was read, whose probabilities are
    compared with the file's own.

    Args:
        forward: The file.
        x: Images to compare them on.
        logits: As given to :func:`sad_export.two_pass`.
        has_tail: Whether the file gives probabilities.

    Raises:
        VerificationError: The file gives other probabilities than what was read from it.
    """
    plain = cpu_session(forward)
    stated = [value.name for value in plain.get_outputs()]
    if has_tail:
        whole = cpu_session(load_classifier(forward, logits=logits, keep_output=True).model)
        taken, probabilities = (value.name for value in whole.get_outputs())
        if not np.allclose(run_rows(plain, probabilities, x), run_rows(whole, probabilities, x), rtol=1e-3):
            raise VerificationError(
                f"{forward} gives other probabilities than the graph read from it", hint=REPORT
            )
        return lambda x: run_rows(whole, taken, x)
    name = logits or stated[0]
    session = plain if name in stated else cpu_session(_with_output(forward, name))
    return lambda x: run_rows(session, name, x)


def run_rows(session: onnxruntime.InferenceSession, output: str, x: Array) -> Array:
    """One output for (N, C, H, W) images, one image at a time, or as many as a static batch says."""
    (image,) = session.get_inputs()
    batch = image.shape[0] if isinstance(image.shape[0], int) else 1
    parts = [x[i : i + batch].astype(INPUT_TYPES[image.type]) for i in range(0, len(x), batch)]
    return np.concatenate([session.run([output], {image.name: part})[0] for part in parts])


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


def slope_error(phi: Callable[[Array], Array], x: Array, saliency: Array, labels: Array) -> float:
    """|measured slope of the largest logit along S / ‖S‖ − 1|, the median over the images.

    A saliency of zero says that the logit is flat there, so along a random direction it must not change:
    its error is 0 or infinite.

    Args:
        phi: (N, C, H, W) → logits (N, K).
        x: (N, C, H, W) float64.
        saliency: Likewise.
        labels: (N,), of the largest logit.
    """
    axes = tuple(range(1, x.ndim))
    norms = np.sqrt((saliency**2).sum(axes, keepdims=True))
    noise = np.random.default_rng(0).standard_normal(x.shape)
    noise /= np.sqrt(np.square(noise).sum(axes, keepdims=True))
    direction = np.where(norms > 0, saliency / np.where(norms > 0, norms, 1.0), noise)
    size = np.sqrt((x**2).sum(axes, keepdims=True))
    rows = np.arange(len(x))
    slopes = []
    for relative_step in _RELATIVE_STEPS:
        step = relative_step * np.where(size > 0, size, 1.0)
        rise = phi(x + step * direction)[rows, labels] - phi(x - step * direction)[rows, labels]
        slopes.append(rise / (2 * step.reshape(-1)))
    norms = norms.reshape(-1)
    errors = np.min(np.abs(np.divide(slopes, np.where(norms > 0, norms, 1.0)) - 1), axis=0)
    # A large step crosses kinks, and a small one drowns, so a slope shows itself at most of them.
    has_slope = np.mean(np.not_equal(slopes, 0), axis=0) > 0.5
    return float(np.median(np.where(norms > 0, errors, np.where(has_slope, np.inf, 0.0))))
