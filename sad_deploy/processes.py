"""Several processes that calibrate one network together, as ``torchrun`` starts them.

They divide batches among them and exchange sums over these, a few numbers a channel: gloo on the CPU carries
that wherever the network runs. Every process goes over the same batches in the same order, takes its own and
passes over the others.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import TypeVar

import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from sad_runtime.errors import UserError

T = TypeVar("T")

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LONGEST_WAIT = datetime.timedelta(hours=1)
"""For a process that hangs; one that has ended is noticed at once."""

_EXIT_UNUSABLE, _EXIT_INTERRUPTED = 2, 130


class Processes:
    """Those that work together.

    Args:
        rank: Number of this one, from 0.
        count: How many there are.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def is_first(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    def takes(self, index: int) -> bool:
        """Whether a batch, counted from 0 over all of them, is this process' own."""
        return index % self.count == self.rank

    def gather(self, value: T) -> list[T]:
        """What every process gave, by rank. All must call this, in the same order.

        Raises:
            UserError: One of them has ended.
        """
        if self.count == 1:
            return [value]
        found: list[T | None] = [None] * self.count
        try:
            dist.all_gather_object(found, value)
        except RuntimeError as error:
            raise UserError(
                "another process of this calibration has ended", hint="what it said stands before this"
            ) from error
        return found  # type: ignore[return-value]  # all of them were filled


ALONE = Processes()


def local_rank() -> int:
    """Number of this process on its machine: of the GPU that is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """The processes that ``torchrun`` started, or this one alone.

    What is wrong is said once: by the first of them that finds it.

    Raises:
        UserError: They cannot find each other.
        SystemExit: In place of the error of a process that need not speak.
    """
    if not all(name in os.environ for name in _VARIABLES) or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    try:
        store, rank, count = next(rendezvous("env://", timeout=_LONGEST_WAIT))
        dist.init_process_group(
            "gloo", store=PrefixStore("sad", store), rank=rank, world_size=count, timeout=_LONGEST_WAIT
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes cannot find each other: {error}",
            hint="torchrun sets RANK, WORLD_SIZE and the rest",
        ) from error
    try:
        yield Processes(rank, count)
    except UserError as error:
        if not _speaks(store):
            raise SystemExit(_EXIT_UNUSABLE) from error
        raise
    except KeyboardInterrupt as error:
        if rank:
            raise SystemExit(_EXIT_INTERRUPTED) from error
        raise
    finally:
        dist.destroy_process_group()


def _speaks(store: Store) -> bool:
    """Whether no other process has said what is wrong; none does where the first has gone."""
    try:
        return bool(store.add("sad/spoken", 1) == 1)
    except RuntimeError:
        return False
