"""What memory holds at once: batches are halved until they fit, and stay so."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..errors import BackendError, OutOfDeviceMemoryError

Notice = Callable[[str], None]
"""Called with one line when a backend changes what it does, for example makes its batches smaller."""

_HINTS = {
    "GPU memory": "end what else runs on the GPU (nvidia-smi shows it), or use --backend cpu",
    "memory": "end what else runs here",
}

T = TypeVar("T")


def ignore(message: str) -> None:
    """A notice that nobody wants."""


class BatchLimit:
    """How many images a backend computes at once.

    Attributes:
        size: That many; ``None`` for any number.

    Args:
        size: What the backend takes.
        smallest: The backend runs fewer images as this many, so halving ends there.
        notice: Told once of each new size.
        memory: Whose memory it is.
    """

    def __init__(
        self, size: int | None, *, smallest: int = 1, notice: Notice = ignore, memory: str = "GPU memory"
    ) -> None:
        self.size = size
        self._memory = memory
        self._smallest = smallest
        self._notice = notice

    def fit(self, count: int, run: Callable[[int], T]) -> T:
        """Run a batch in pieces that memory holds. A size that was too large is never tried again.

        Args:
            count: Images in the batch.
            run: Runs the whole batch in pieces of a size; called again with half of it where that
                failed for want of memory, so it must not keep anything of a failed attempt.

        Returns:
            What ``run`` returned.

        Raises:
            BackendError: Not even the smallest piece fits; or what ``run`` raised.
        """
        size = tried = self.size or count
        while True:
            problem = None
            try:
                result = run(size)
            except OutOfDeviceMemoryError as error:
                # What the failed attempt held is let go with its frames, before the next one allocates.
                problem = error.message
            else:
                break
            if size <= self._smallest:
                raise BackendError(
                    f"{self._memory} does not even hold a batch of {size}: {problem}",
                    hint=_HINTS[self._memory],
                )
            size = max(self._smallest, size // 2)
        if size != tried:
            self.size = size
            self._notice(f"{self._memory} is short: going on with batches of {size}")
        return result
