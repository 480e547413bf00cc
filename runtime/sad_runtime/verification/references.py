"""What the reference says of a bundle's own images: ``references.npz``, written by an export.

All logits, and of the saliency so many elements of every image as keep the file small; a saliency that is
right in 4096 places drawn by chance is right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..bundle import Bundle
from ..errors import BundleError
from .agreement import Array
from .samples import read_samples

REFERENCES = "references.npz"
LARGEST_BYTES = 2_000_000
_MOST_ELEMENTS = 4096
_AGAIN = "sad-deploy export writes it anew"


@dataclasses.dataclass(frozen=True)
class References:
    """Images and what they should give.

    Attributes:
        images: (N, C, H, W) float32 in [0, 1].
        logits: (N, K) of the defended prediction.
        plain_logits: (N, K) of the first pass.
        saliency: (N, M) elements of S, each image's up to a factor.
        positions: (M,) where they stand in (C·H·W,).
    """

    images: Array
    logits: Array
    plain_logits: Array
    saliency: Array
    positions: Array

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> References:
        """Those of the first images."""
        return dataclasses.replace(
            self,
            images=self.images[:count],
            logits=self.logits[:count],
            plain_logits=self.plain_logits[:count],
            saliency=self.saliency[:count],
        )

    def wanted(self) -> dict[str, Array]:
        """The reference's outputs by name."""
        return {"logits": self.logits, "plain_logits": self.plain_logits, "saliency": self.saliency}

    def taken(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """A graph's outputs, the saliency at the same positions."""
        saliency = outputs["saliency"].reshape(len(outputs["saliency"]), -1)
        return {**outputs, "saliency": saliency[:, self.positions]}


def write_references(path: Path, outputs: Mapping[str, Array]) -> None:
    """Write the references of a bundle's images, at most 2 MB.

    Args:
        path: The file.
        outputs: ``logits`` (N, K), ``plain_logits`` (N, K) and ``saliency`` (N, C, H, W) of its first images.
    """
    logits = outputs["logits"]
    maps = outputs["saliency"].reshape(len(logits), -1)
    chosen = np.random.default_rng(0).permutation(maps.shape[1])[:_MOST_ELEMENTS]
    positions = np.sort(chosen).astype(np.int32)
    saliency = maps[:, positions].astype(np.float64)
    # Its size varies over many powers of ten, and float16 holds few.
    largest = np.abs(saliency).max(axis=1, keepdims=True)
    saliency = (saliency / np.where(largest > 0, largest, 1.0)).astype(np.float16)
    an_image = saliency[0].nbytes + 2 * logits[0].astype(np.float32).nbytes
    count = max(2, min(len(logits), (LARGEST_BYTES - positions.nbytes) // an_image))
    np.savez(
        path,
        allow_pickle=False,
        logits=logits[:count].astype(np.float32),
        plain_logits=outputs["plain_logits"][:count].astype(np.float32),
        saliency=saliency[:count],
        positions=positions,
    )


def read_references(bundle: Bundle) -> References | None:
    """The bundle's images and references; None where it carries none.

    Raises:
        BundleError: They do not fit each other or the manifest.
    """
    if REFERENCES not in bundle.manifest.files or (samples := read_samples(bundle)) is None:
        return None
    path = bundle.file(REFERENCES)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            logits, plain_logits, saliency, positions = (
                arrays[name] for name in ("logits", "plain_logits", "saliency", "positions")
            )
    except (ValueError, OSError, KeyError, EOFError) as error:
        raise BundleError(f"{path} cannot be read: {error}", hint=_AGAIN) from None
    images = samples[0][: len(logits)]
    classes = len(bundle.manifest.classes)
    fits = (
        logits.shape == plain_logits.shape == (len(images), classes)
        and saliency.shape == (len(images), len(positions))
        and len(images) >= 2
        and positions.max(initial=0) < images[0].size
    )
    if not fits:
        raise BundleError(f"{path} does not fit the bundle's images and classes", hint=_AGAIN)
    as_pixels: Array = images.astype(np.float32) / np.float32(255)
    return References(as_pixels, logits, plain_logits, saliency.astype(np.float32), positions)
