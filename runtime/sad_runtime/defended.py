"""What the second pass sees, in pixels: image′ = clip(image + η·std·n(S)).

The graph adds η·n(S) to x = (image − mean) / std. The map is affine with a positive slope, so the same step
in pixels is std times as long, and the clip to the image of [0, 1] is the clip to [0, 1].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .choices import Normalization
from .manifest import Manifest


def defended_image(
    image: npt.NDArray[np.float32], saliency: npt.NDArray[np.float32], manifest: Manifest
) -> npt.NDArray[np.float64]:
    """The image whose first pass is the second pass of ``image``.

    Args:
        image: (C, H, W) in [0, 1]: what the graph was given.
        saliency: (C, H, W), S of that image, unnormalised, in the network's input space.
        manifest: What the bundle says of η, normalisation, clip, mean and standard deviation.

    Returns:
        (C, H, W); without a clip it may leave [0, 1].
    """
    defence = manifest.defence
    std = np.asarray(manifest.input_space.std, dtype=np.float64).reshape(-1, 1, 1)
    shifted = image + defence.eta * std * normalized(saliency, defence.normalization)
    return np.clip(shifted, 0, 1) if defence.clip else shifted


def normalized(saliency: npt.NDArray[np.float32], normalization: Normalization) -> npt.NDArray[np.float64]:
    """n(S) of one image, as :class:`Normalization` says; a map of zeros stays zero.

    ``linf``: S / max|S|. ``rms``: S / √mean(S²), from S / max|S| so that no square overflows or vanishes.

    Args:
        saliency: (C, H, W), S.
        normalization: n.

    Returns:
        (C, H, W).
    """
    s = np.asarray(saliency, dtype=np.float64)
    if normalization is Normalization.NONE:
        return s
    if normalization is Normalization.SIGN:
        return np.sign(s)
    largest = np.abs(s).max()
    if largest == 0:
        return s
    unit = s / largest
    if normalization is Normalization.RMS:
        unit = unit / np.sqrt(np.square(unit).mean())
    return np.asarray(unit)
