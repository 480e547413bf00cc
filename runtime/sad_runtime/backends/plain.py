"""A forward classifier behind the interface of a two-pass graph: its logits, without a defence."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from ..plain import PlainGraph
from .protocol import LOGITS, Backend


class PlainBackend:
    """See the module and :class:`~sad_runtime.backends.protocol.Backend`.

    Args:
        backend: The file, loaded under its own names; it is closed with this.
        graph: How it is run.
    """

    def __init__(self, backend: Backend, graph: PlainGraph) -> None:
        self._backend = backend
        self._graph = graph
        self.name = backend.name
        self.runs_on = backend.runs_on
        self.input_shape = backend.input_shape
        self.output_names = (LOGITS,)

    @property
    def max_batch(self) -> int | None:
        """The loaded file's."""
        return self._backend.max_batch

    def run(
        self, images: npt.NDArray[np.float32], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run a batch; see the protocol."""
        found = self._backend.run(self._graph.space(images), (self._graph.logits,))
        return dict.fromkeys(outputs, self._graph.as_logits(found[self._graph.logits]))

    def close(self) -> None:
        """Close the file."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
