"""Which η are worth trying for a network: from those that move nothing to those that break everything.

η has no scale of its own: the size of S depends on the network, its input space and the normalisation. What
can be said of any network is how far a pixel moves: mean |η·n(S)|·σ·255, in grey levels of an 8-bit image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sad_runtime.choices import Normalization
from sad_runtime.errors import UserError
from sad_runtime.manifest import InputSpace

from .classifier import SADClassifier, add_saliency
from .saliency import normalize_saliency

MOVES_NOTHING = 0.25
"""Grey levels that a pixel moves on average at the smallest η; an image file cannot hold so little."""

BREAKS_EVERYTHING = 64.0
"""Grey levels at the largest."""

_STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
"""η a decade: round numbers, each about 1.5 times the one before."""


def grey_levels(change: Tensor, space: InputSpace | None) -> float:
    """Mean absolute change of a pixel, of 255 levels.

    Args:
        change: (N, C, H, W) in the network's input space.
        space: Pixels to network input; None when the network takes pixels as they are.
    """
    if space is not None:
        change = change * change.new_tensor(space.std).reshape(-1, 1, 1)
    return 255 * float(change.abs().mean(dtype=torch.float64))


def defended(classifier: SADClassifier, x: Tensor, space: InputSpace | None) -> tuple[Tensor, float]:
    """Logits (N, K) of the second pass, and how far it moves a pixel of x (N, C, H, W), in grey levels."""
    found = classifier.defend(x)
    salient = add_saliency(
        x,
        found.saliency,
        eta=classifier.eta,
        normalization=classifier.normalization,
        clip=classifier.clip,
    )
    return found.logits, grey_levels(salient - x, space)


def grid_for(s: Tensor, space: InputSpace | None, normalization: Normalization) -> tuple[float, ...]:
    """η from :data:`MOVES_NOTHING` to :data:`BREAKS_EVERYTHING`, ascending.

    Args:
        s: (N, C, H, W), S of some images.
        space: Pixels to network input, or None.
        normalization: Of S.

    Raises:
        UserError: S is zero on all of these images, or not finite.
    """
    per_unit = grey_levels(normalize_saliency(s, normalization), space)
    if not math.isfinite(per_unit) or per_unit <= 0:
        raise UserError(
            f"the saliency of the first batch is {'zero' if per_unit == 0 else 'not finite'}: the largest "
            "logit does not depend on the image, or the weights are broken",
            hint="check --weights; SAD needs a network whose logits have a gradient",
        )
    first, last = (level / per_unit for level in (MOVES_NOTHING, BREAKS_EVERYTHING))
    decades = range(math.floor(math.log10(first)) - 1, math.ceil(math.log10(last)) + 1)
    etas = [float(f"{step * 10.0**decade:.2g}") for decade in decades for step in _STEPS]
    below = max(eta for eta in etas if eta <= first * (1 + 1e-9))
    above = min(eta for eta in etas if eta >= last * (1 - 1e-9))
    return tuple(eta for eta in etas if below <= eta <= above)
