"""How a forward classifier's file is run: its names, and what stands before and after it.

A bundle says it, and opening one imports no numpy.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class PlainGraph:
    """How a forward classifier's file is run.

    Attributes:
        image: Name of its input.
        logits: Name of its output.
        mean: Per channel; the file takes (image − mean) / std. 0 where it takes pixels in [0, 1].
        std: Per channel.
        probabilities: Whether it gives probabilities: their logarithms are logits with the same softmax.
    """

    image: str
    logits: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    probabilities: bool = False

    @property
    def takes_pixels(self) -> bool:
        """Whether it takes pixels in [0, 1] as they are."""
        return set(self.mean) == {0.0} and set(self.std) == {1.0}

    def space(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What the file takes, of (N, C, H, W) pixels in [0, 1]."""
        if self.takes_pixels:
            return images
        import numpy as np

        mean, std = (
            np.asarray(each, dtype=np.float32).reshape(1, -1, 1, 1) for each in (self.mean, self.std)
        )
        return np.ascontiguousarray((images - mean) / std)

    def as_logits(self, output: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Logits, of what the file gives."""
        import numpy as np

        least = np.finfo(np.float32).tiny  # what is 0 stays finite
        return np.log(np.maximum(output, least)) if self.probabilities else output
