"""How far what a graph gives is from its reference: labels, logits and the saliency itself.

Comparing only logits let an all-zero saliency pass once, so the saliency has figures too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .tolerances import ZERO_SALIENCIES, Tolerance

Array = np.ndarray[Any, Any]


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

    @classmethod
    def of(cls, figures: Mapping[str, float]) -> Verification | None:
        """From what :meth:`as_dict` gave; None where a figure is missing, as in a manifest of long ago."""
        names = [field.name for field in dataclasses.fields(cls)]
        if not set(names) <= set(figures):
            return None
        return cls(int(figures["images"]), *(float(figures[name]) for name in names[1:]))

    def is_finite(self) -> bool:
        """Whether every figure is a number; none is where some logit or saliency is not."""
        return bool(np.isfinite(list(self.as_dict().values())).all())

    def shortfalls(self, tolerance: Tolerance) -> list[str]:
        """Every figure outside the tolerance, in words."""
        return [words for _, words in self.outside(tolerance)]

    def outside(self, tolerance: Tolerance) -> Iterator[tuple[str, str]]:
        """Every figure outside the tolerance: its name, and it in words. A NaN is outside."""
        least = {
            "label_agreement": ("label agreement", tolerance.label_agreement),
            "plain_label_agreement": ("label agreement of the first pass", tolerance.label_agreement),
            "saliency_cosine_median": ("median saliency cosine", tolerance.saliency_cosine_median),
            "saliency_cosine_min": ("smallest saliency cosine", tolerance.saliency_cosine_min),
            "saliency_variation": (
                "variation of the saliency over the images",
                tolerance.saliency_variation,
            ),
        }
        most = {
            "logits_relative_l2": ("logits", tolerance.logits_relative_l2),
            "plain_logits_relative_l2": ("first pass", tolerance.plain_logits_relative_l2),
        }
        for name, (words, bound) in least.items():
            value = getattr(self, name)
            if not value >= bound:
                yield name, f"{words} {value:.6g} < {bound:.6g}"
        if self.zero_saliencies > ZERO_SALIENCIES * self.images:
            yield (
                "zero_saliencies",
                f"the saliency of {self.zero_saliencies:g} of {self.images} images is zero",
            )
        for name, (words, bound) in most.items():
            value = getattr(self, name)
            if not value <= bound:
                yield name, f"relative L2 error of the {words} {value:.3g} > {bound:.3g}"


def compare(got: Mapping[str, Array], want: Mapping[str, Array]) -> Verification:
    """The figures of ``logits``, ``saliency`` and ``plain_logits``, first axis N; a saliency in any shape."""
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


def worst(figures: Sequence[Verification]) -> Verification:
    """The worst of each."""

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
