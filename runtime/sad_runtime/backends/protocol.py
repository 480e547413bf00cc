"""The one interface behind which backends differ, and what every graph must look like to be run."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

INPUT = "image"
"""Name of the graph's input: (N, C, H, W) float32 in [0, 1]."""

LOGITS = "logits"
"""(N, K): the defended prediction, of the second pass."""

SALIENCY = "saliency"
"""(N, C, H, W): S, unnormalised, in the network's input space."""

PLAIN_LOGITS = "plain_logits"
"""(N, K): the first pass, recalibrated but without saliency."""


class Backend(Protocol):
    """A loaded two-pass graph. A context manager; for one thread at a time, which the classifier sees to.

    Attributes:
        name: ``cpu``, ``openvino``, ``cuda``, ``tensorrt`` or ``rtx``.
        runs_on: Runtime with its version, and the device, for people and to tell two of them apart.
        input_shape: (C, H, W).
        output_names: Names that :meth:`run` can be asked for.
        max_batch: Largest batch that runs in one piece; ``None`` for no limit. Larger ones are split. Where
            GPU memory turns out to be short, it becomes smaller.
    """

    @property
    def name(self) -> str: ...

    @property
    def runs_on(self) -> str: ...

    @property
    def input_shape(self) -> tuple[int, int, int]: ...

    @property
    def output_names(self) -> tuple[str, ...]: ...

    @property
    def max_batch(self) -> int | None: ...

    def run(
        self, images: npt.NDArray[np.float32], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run a batch.

        Args:
            images: (N, C, H, W) float32 in [0, 1], N at least 1, contiguous.
            outputs: Which outputs to return.

        Returns:
            The outputs by name, first axis N.

        Raises:
            BackendError: The batch could not be run, not even image by image where memory is short.
        """
        ...

    def close(self) -> None:
        """Give back memory and devices. May be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
