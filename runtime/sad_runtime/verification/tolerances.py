"""The one table of tolerances, used by verification and by tests."""

from __future__ import annotations

import dataclasses

ZERO_SALIENCIES = 0.5
"""Share of images whose saliency may be zero: x + η·0 is no defence."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """What a graph must reach against its reference on real images.

    Attributes:
        label_agreement: Least share of equal labels, of either pass.
        plain_logits_relative_l2: Largest ‖Δ‖/‖reference‖ of the logits of the first pass.
        logits_relative_l2: The same of the second pass. Looser: η carries what differs in S into its input.
        saliency_cosine_median: Least median over the images of cos(S, S_reference).
        saliency_cosine_min: Least cosine of a single image. Looser: a sample on a ReLU boundary may take
            the other side, which changes its saliency by a jump.
        saliency_variation: Lower bound of max_i ‖S_i − mean S‖ / ‖mean S‖. A saliency that does not
            change with the image is wrong however well the logits agree.
    """

    label_agreement: float
    plain_logits_relative_l2: float
    logits_relative_l2: float
    saliency_cosine_median: float
    saliency_cosine_min: float
    saliency_variation: float


TOLERANCES = {
    "fp32": Tolerance(
        label_agreement=1.0,
        plain_logits_relative_l2=1e-4,
        logits_relative_l2=2e-3,
        saliency_cosine_median=0.9999,
        saliency_cosine_min=0.99,
        saliency_variation=1e-3,
    ),
    # Rounded weights move pre-activations near 0 to the other side of their ReLU; it is in the saliency that
    # this shows. A wrong graph is off by far more than either row.
    "fp16": Tolerance(
        label_agreement=0.995,
        plain_logits_relative_l2=5e-3,
        logits_relative_l2=2e-2,
        saliency_cosine_median=0.995,
        saliency_cosine_min=0.9,
        saliency_variation=1e-3,
    ),
    "bf16": Tolerance(
        label_agreement=0.99,
        plain_logits_relative_l2=4e-2,
        logits_relative_l2=0.1,
        saliency_cosine_median=0.98,
        saliency_cosine_min=0.8,
        saliency_variation=1e-3,
    ),
    # 8 bits turn over the ReLU of what lies near 0, layer after layer, and the backward has 8 bits as well.
    # Where the label of the first pass turns over, within its own tolerance, S is another class's gradient.
    "int8": Tolerance(
        label_agreement=0.98,
        plain_logits_relative_l2=0.15,
        logits_relative_l2=0.2,
        saliency_cosine_median=0.8,
        saliency_cosine_min=-1.0,
        saliency_variation=1e-3,
    ),
}
"""By the lowest precision in the graph."""
