"""Compare a two-pass graph with its reference on real images: labels, logits and the saliency itself.

Comparing only logits let an all-zero saliency pass once, so the saliency has tolerances too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from sad_runtime.errors import UserError

from .graph.expression import Array
from .graph.session import cpu_session
from .tolerances import TOLERANCES, ZERO_SALIENCIES, Tolerance

BATCH_SIZES = (1, 3, 8)
"""One image, an odd batch and an even one: a batch size frozen into the graph fails one of them."""

REPORT = "nothing was kept; this should not happen: please report the model"
_HINTS = {
    "fp32": REPORT,
    "fp16": "nothing was kept; try --saliency-precision fp32, or take it with --allow-inaccurate",
    "bf16": "nothing was kept; try --saliency-precision fp16, or take it with --allow-inaccurate",
    "int8": "nothing was kept; try other --ranges or --saliency-precision fp32, or take it with "
    "--allow-inaccurate",
}
_OVERFLOW_HINTS = {
    "fp32": REPORT,
    "fp16": "nothing was kept; some value left fp16's range: bf16 has that of fp32, --precision bf16",
    "bf16": REPORT,
    "int8": REPORT,
}


class VerificationError(UserError):
    """The graph does not compute what its reference does; nothing was kept."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """Figures of a comparison, the worst over the batch sizes.

    Attributes:
        images: Number of images compared.
        label_agreement: Share of images with the label of the reference (second pass).
        plain_label_agreement: The same of the first pass.
        logits_relative_l2: ‖logits − reference‖ / ‖reference‖ over all images.
        plain_logits_relative_l2: The same of the first pass.
        saliency_cosine_median: Median over the images of cos(S, S_reference).
        saliency_cosine_min: Its minimum.
        saliency_variation: Largest ‖S_i − mean S‖ / ‖mean S‖ over the images; 0 for a constant saliency.
        zero_saliencies: Images whose saliency is zero everywhere.
    """

    images: int
    label_agreement: float
    plain_label_agreement: float
    logits_relative_l2: float
    plain_logits_relative_l2: float
    saliency_cosine_median: float
    saliency_cosine_min: float
    saliency_variation: float
    zero_saliencies: float

    def as_dict(self) -> dict[str, float]:
        """For the manifest."""
        return {name: float(value) for name, value in dataclasses.asdict(self).items()}

    def is_finite(self) -> bool:
        """Whether every figure is a number; none is where some logit or saliency is not."""
        return bool(np.isfinite(list(self.as_dict().values())).all())

    def shortfalls(self, tolerance: Tolerance) -> list[str]:
        """Every figure outside the tolerance, in words."""
        least = [
            ("label agreement", self.label_agreement, tolerance.label_agreement),
            ("label agreement of the first pass", self.plain_label_agreement, tolerance.label_agreement),
            ("median saliency cosine", self.saliency_cosine_median, tolerance.saliency_cosine_median),
            ("smallest saliency cosine", self.saliency_cosine_min, tolerance.saliency_cosine_min),
            (
                "variation of the saliency over the images",
                self.saliency_variation,
                tolerance.saliency_variation,
            ),
        ]
        most = [
            ("logits", self.logits_relative_l2, tolerance.logits_relative_l2),
            ("first pass", self.plain_logits_relative_l2, tolerance.plain_logits_relative_l2),
        ]
        # Written so that a NaN falls short.
        found = [f"{name} {value:.6g} < {bound:.6g}" for name, value, bound in least if not value >= bound]
        if self.zero_saliencies > ZERO_SALIENCIES * self.images:
            found.append(f"the saliency of {self.zero_saliencies:g} of {self.images} images is zero")
        return found + [
            f"relative L2 error of the {name} {value:.3g} > {bound:.3g}"
            for name, value, bound in most
            if not value <= bound
        ]


def verify(
    graph: Path,
    images: Array,
    reference: Mapping[str, Array],
    *,
    precision: str = "fp32",
    batch_sizes: Sequence[int] = BATCH_SIZES,
    emulation: Path | None = None,
    runs_on_cpu: bool = True,
    allow_inaccurate: bool = False,
) -> Verification:
    """Run a two-pass graph on the CPU and compare it with a reference.

    In lower precision its emulation in float32 is run as well, or in its place: onnxruntime's CPU leaves
    values between fp16 nodes unrounded, and has no bf16 kernels. See :mod:`sad_export.precision`.

    Args:
        graph: The ONNX file.
        images: (N, C, H, W) float32 in [0, 1], real ones; at least two.
        reference: ``logits`` (N, K), ``saliency`` (N, C, H, W) and ``plain_logits`` (N, K) of these images.
        precision: Row of the tolerance table.
        batch_sizes: Each is run over all images.
        emulation: The ONNX file of the graph's emulation in float32, for a graph in lower precision.
        runs_on_cpu: Whether onnxruntime's CPU runs the graph itself.
        allow_inaccurate: Return figures outside the tolerance instead of raising, if they are finite.

    Returns:
        The worst figures over the batch sizes and forms.

    Raises:
        VerificationError: Some figure is outside its tolerance; the message names each.
    """
    if len(images) < 2:
        raise VerificationError(
            f"verification needs at least two images, got {len(images)}",
            hint="calibrate again with --samples 64, or give --data",
        )
    forms = [graph] if runs_on_cpu else []
    forms += [emulation] if emulation is not None else []
    fuses = emulation is None
    worst = _worst(
        [figures for form in forms for figures in _each(form, images, reference, batch_sizes, fuses)]
    )
    shortfalls = worst.shortfalls(TOLERANCES[precision])
    if shortfalls and not (allow_inaccurate and worst.is_finite()):
        raise VerificationError(
            f"the exported graph differs from its reference on {len(images)} images: {'; '.join(shortfalls)}",
            hint=_HINTS[precision] if worst.is_finite() else _OVERFLOW_HINTS[precision],
        )
    return worst


def _each(
    graph: Path, images: Array, reference: Mapping[str, Array], batch_sizes: Sequence[int], fuses: bool
) -> list[Verification]:
    """Figures at each batch size."""
    session = cpu_session(graph, fuses_integers=fuses)
    return [_compare(_run(session, images, size), reference) for size in batch_sizes]


def run_graph(graph: Path, images: Array) -> dict[str, Array]:
    """``logits``, ``saliency`` and ``plain_logits`` of a two-pass graph, on the CPU."""
    return _run(cpu_session(graph), images, max(BATCH_SIZES))


def _run(session: onnxruntime.InferenceSession, images: Array, batch_size: int) -> dict[str, Array]:
    names = ("logits", "saliency", "plain_logits")
    parts = [
        session.run(names, {"image": images[i : i + batch_size]}) for i in range(0, len(images), batch_size)
    ]
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


def _compare(got: Mapping[str, Array], want: Mapping[str, Array]) -> Verification:
    with np.errstate(invalid="ignore", over="ignore"):  # what overflowed gives NaN, which falls short
        return _figures(got, want)


def _figures(got: Mapping[str, Array], want: Mapping[str, Array]) -> Verification:
    cosines = _cosines(got["saliency"], want["saliency"])
    return Verification(
        images=len(cosines),
        label_agreement=_agreement(got["logits"], want["logits"]),
        plain_label_agreement=_agreement(got["plain_logits"], want["plain_logits"]),
        logits_relative_l2=relative_l2(got["logits"], want["logits"]),
        plain_logits_relative_l2=relative_l2(got["plain_logits"], want["plain_logits"]),
        saliency_cosine_median=float(np.median(cosines)),
        saliency_cosine_min=float(cosines.min()),
        saliency_variation=_variation(got["saliency"]),
        zero_saliencies=count_zero(got["saliency"]),
    )


def _agreement(got: Array, want: Array) -> float:
    return float((got.argmax(1) == want.argmax(1)).mean())


def count_zero(saliency: Array) -> int:
    """How many of (N, C, H, W) are zero everywhere."""
    return sum(not each.any() for each in saliency)


def relative_l2(got: Array, want: Array) -> float:
    """‖got − want‖ / ‖want‖ in float64."""
    return float(np.linalg.norm((got - want).astype(np.float64)) / np.linalg.norm(want.astype(np.float64)))


def _cosines(got: Array, want: Array) -> Array:
    """Per image; two zero maps agree, a zero map against another does not."""
    a, b = (maps.reshape(len(maps), -1).astype(np.float64) for maps in (got, want))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(1) & ~b.any(1)
    cosines: Array = np.where(both_zero, 1.0, (a * b).sum(1) / np.where(norms > 0, norms, 1.0))
    return cosines


def _variation(saliency: Array) -> float:
    maps = saliency.reshape(len(saliency), -1).astype(np.float64)
    if not maps.any():
        return 0.0
    mean = maps.mean(0)
    return float(np.linalg.norm(maps - mean, axis=1).max() / (np.linalg.norm(mean) + 1e-30))


def _worst(figures: Sequence[Verification]) -> Verification:
    def largest(name: str) -> float:
        return float(np.max([getattr(each, name) for each in figures]))

    def smallest(name: str) -> float:
        return float(np.min([getattr(each, name) for each in figures]))

    return Verification(
        images=figures[0].images,
        label_agreement=smallest("label_agreement"),
        plain_label_agreement=smallest("plain_label_agreement"),
        logits_relative_l2=largest("logits_relative_l2"),
        plain_logits_relative_l2=largest("plain_logits_relative_l2"),
        saliency_cosine_median=smallest("saliency_cosine_median"),
        saliency_cosine_min=smallest("saliency_cosine_min"),
        saliency_variation=smallest("saliency_variation"),
        zero_saliencies=largest("zero_saliencies"),
    )
