"""Check a two-pass graph against nothing but its own forward graph, where there is no PyTorch model.

1. ``plain_logits`` are the forward graph's logits.
2. ``logits`` are the forward graph's logits on x + η·n(S), with S as the two-pass graph gave it.
3. S is the gradient: the largest logit changes along S as ‖S‖ says. With ŝ = S/‖S‖,
   (Φ(x + hŝ) − Φ(x − hŝ)) / 2h ≈ ‖S‖, by central differences; in float32, so at several h and with the
   median over the images.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from sad_runtime.choices import Normalization
from sad_runtime.defended import normalized
from sad_runtime.verification.agreement import count_zero, relative_l2
from sad_runtime.verification.tolerances import ZERO_SALIENCIES

from .graph.expression import Array
from .graph.session import cpu_session
from .loading import FileForm
from .reference import logit_of, reference, refuse_probabilities, rounds, slope_error
from .two_pass import Defence
from .verify import VerificationError

LOGITS_TOLERANCE = 1e-4
# Central differences cross kinks of a ReLU network; a wrong rule misses by far more.
SLOPE_TOLERANCE = 0.05

_ROUNDED = (
    "the file rounds values to codes (QuantizeLinear), between which a slope cannot be measured; give the "
    "float32 classifier, and --precision int8 quantises it here"
)


@dataclasses.dataclass(frozen=True)
class ForwardVerification:
    """Figures of the check.

    Attributes:
        images: Number of images.
        plain_logits_relative_l2: Of the first pass against the forward graph.
        logits_relative_l2: Of the second pass against the forward graph on x + η·n(S).
        slope_error: |measured slope along S / ‖S‖ − 1|, median over the images; see :func:`slope_error`.
        zero_saliencies: Images whose saliency is zero everywhere.
    """

    images: int
    plain_logits_relative_l2: float
    logits_relative_l2: float
    slope_error: float
    zero_saliencies: int


def verify_forward(
    two_pass: Path,
    forward: Path,
    images: Array,
    defence: Defence,
    *,
    logits: str | None = None,
    form: FileForm = FileForm(),  # noqa: B008 -- frozen
) -> ForwardVerification:
    """Check a two-pass graph against its forward graph.

    Args:
        two_pass: The graph to check.
        forward: The graph it was made from.
        images: (N, C, H, W) float32 for the two-pass graph's input.
        defence: What was put around the forward graph; a clip is not looked at.
        logits: Name of the forward graph's logits, where it has several outputs.
        form: How the file's own input and output differ from the two-pass graph's.

    Raises:
        VerificationError: Some figure is outside its tolerance, or every saliency is zero.
    """
    defended = cpu_session(two_pass)
    got = [defended.run(["logits", "saliency", "plain_logits"], {"image": image[None]}) for image in images]
    second, saliency, first = (np.concatenate([row[i] for row in got]) for i in range(3))
    x = images.astype(np.float64)
    if defence.mean is not None and defence.std is not None:
        x = (x - np.reshape(defence.mean, (-1, 1, 1))) / np.reshape(defence.std, (-1, 1, 1))
    phi = reference(forward, x[:4], logits=logits, form=form)
    scaling = Normalization(defence.normalization)
    mixed = x + defence.eta * np.stack([normalized(each, scaling) for each in saliency])
    zero = count_zero(saliency)
    figures = ForwardVerification(
        images=len(images),
        plain_logits_relative_l2=relative_l2(first, phi(x)),
        logits_relative_l2=relative_l2(second, phi(mixed)),
        slope_error=slope_error(phi, x, saliency.astype(np.float64), logit_of(first.argmax(1))),
        zero_saliencies=zero,
    )
    refuse_probabilities(first, forward)
    problems = [
        f"{what} {value:.3g} > {bound:.3g}"
        for what, value, bound in (
            ("relative L2 error of the first pass", figures.plain_logits_relative_l2, LOGITS_TOLERANCE),
            ("relative L2 error of the second pass", figures.logits_relative_l2, LOGITS_TOLERANCE),
            ("error of the slope along the saliency", figures.slope_error, SLOPE_TOLERANCE),
        )
        if not value <= bound
    ]
    if zero > ZERO_SALIENCIES * len(images):
        problems.append(f"the saliency of {zero} of {len(images)} images is zero, which defends nothing")
    if problems:
        raise VerificationError(
            f"the two-pass graph contradicts {forward}: {'; '.join(problems)}",
            hint=_ROUNDED if rounds(two_pass) else "nothing was kept",
        )
    return figures
