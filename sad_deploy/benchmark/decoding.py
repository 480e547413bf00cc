"""The images of a benchmark: which of them can be used, and how fast they are decoded."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from sad_runtime.errors import ImageError, UserError
from sad_runtime.manifest import Preprocessing
from sad_runtime.preprocessing import load
from sad_runtime.sources import FileItem, Item

from .figures import Decode, Images
from .timing import ROUNDS, take_turns

_ROUND = 4
"""Images a worker, at least, in a round: the last ones keep only some of the workers busy."""


@dataclasses.dataclass
class Usable:
    """The images that can be decoded.

    Attributes:
        items: They; at least one.
        failed: How many cannot, by error code.
        example: One of those.
        images_per_second: How fast they were read.
    """

    items: list[Item]
    failed: Counter[str]
    example: str | None
    images_per_second: float

    def figures(self, *, made_up: bool) -> Images:
        """Their numbers."""
        return Images(
            made_up=made_up,
            used=len(self.items),
            failed=dict(self.failed.most_common()),
            failed_example=self.example,
        )


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Decodes in several threads.

    Attributes:
        preprocessing: To what.
        pool: The threads.
        workers: How many they are.
    """

    preprocessing: Preprocessing
    pool: ThreadPoolExecutor
    workers: int

    def usable(self, found: Iterable[Item | str | os.PathLike[str]]) -> Usable:
        """Decode every image once.

        Raises:
            UserError: There is none, or none can be decoded.
        """
        items = [
            FileItem(os.fspath(item)) if isinstance(item, (str, os.PathLike)) else item for item in found
        ]
        started = time.perf_counter()
        problems = list(self.pool.map(self._problem, items))
        rate = len(items) / (time.perf_counter() - started)
        good = [item for item, problem in zip(items, problems, strict=True) if problem is None]
        bad = [(item, problem) for item, problem in zip(items, problems, strict=True) if problem is not None]
        example = f"{bad[0][0].name} ({bad[0][1].message})" if bad else None
        if not good:
            raise UserError(
                f"none of the {len(items)} images can be decoded, for example {example}"
                if items
                else "there is no image to measure with"
            )
        return Usable(good, Counter(problem.code.value for _, problem in bad), example, rate)

    def measure(self, usable: Usable, seconds: float) -> Decode:
        """Decode in all threads, and drop what comes out."""
        in_time = int(usable.images_per_second * seconds / ROUNDS)
        count = max(_ROUND * self.workers, min(len(usable.items), in_time))
        endless = itertools.cycle(usable.items)

        def job() -> None:
            for _ in self.pool.map(self._decode_and_drop, itertools.islice(endless, count)):
                pass

        timing = take_turns({"decode": job}, seconds)["decode"]
        return Decode(
            images_per_second=count / timing.median_wall,
            cpu_ms_per_image=1000 * timing.median_cpu / count,
            workers=self.workers,
            images_per_round=count,
            rounds=timing.rounds,
        )

    def pixels(self, items: Sequence[Item]) -> npt.NDArray[np.float32]:
        """(n, C, H, W): the images, decoded."""
        pixels = np.empty((len(items), *self.preprocessing.shape), np.float32)
        for row, item in zip(pixels, items, strict=True):
            row[:] = load(item, self.preprocessing).pixels
        return pixels

    def _problem(self, item: Item) -> ImageError | None:
        try:
            load(item, self.preprocessing)
        except ImageError as error:
            return error
        return None

    def _decode_and_drop(self, item: Item) -> None:
        load(item, self.preprocessing)
