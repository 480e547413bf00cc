"""Single images from many threads → batches → a future each: what a service needs around a classifier.

Two stages: a pool decodes what was accepted, and one thread runs the model on what is decoded by then. What
is accepted and not answered is bounded, so memory is too; beyond that the caller is told at once, or waits. A
bad image fails alone.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from .backends.protocol import LOGITS, PLAIN_LOGITS
from .devices import available_cores
from .errors import BackendError, ImageError, QueueFullError, UnavailableError, UserError
from .given import GivenImage, as_item, load_item
from .images import MAX_PIXELS
from .pipeline import Model
from .results.answers import rows_of
from .results.row import Row
from .sources import Item


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batching:
    """How :meth:`~sad_runtime.classifier.Classifier.submit` makes batches.

    Attributes:
        max_batch: Most images that the backend is given at once.
        max_wait_ms: Longest that a decoded image waits for more to fill a batch, in milliseconds. One that
            has waited for the batch before it does not wait again.
        max_waiting: Most images that are accepted and not yet answered: decoding, decoded or in the model.
        workers: Decoding threads; by default the cores this process may use.
        max_pixels: Most pixels of an image; one with more is ``too-large``, known from its header.
        top_k: Classes in each ranking.
        logits: Whether rows hold all logits.
    """

    max_batch: int = 16
    max_wait_ms: float = 5.0
    max_waiting: int = 128
    workers: int | None = None
    max_pixels: int = MAX_PIXELS
    top_k: int = 5
    logits: bool = False

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_waiting", "workers", "max_pixels", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if not (math.isfinite(self.max_wait_ms) and self.max_wait_ms >= 0):
            raise UserError(f"max_wait_ms must be a time of at least 0, got {self.max_wait_ms}")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What came through since the start. ``accepted`` is the sum of what follows it but ``batches``.

    Attributes:
        refused: Images that found no room.
        accepted: Images that did.
        answered: Of these, those with a row.
        failed: Those with an error.
        cancelled: Those whose future was cancelled in time.
        waiting: Those that have none of these yet.
        batches: How often the backend was called.
    """

    refused: int = 0
    accepted: int = 0
    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    waiting: int = 0
    batches: int = 0


class Batcher:
    """Fills batches with images of any thread; see the module.

    Args:
        model: The classifier; others may use it meanwhile.
        options: See :class:`Batching`.
    """

    def __init__(self, model: Model, options: Batching) -> None:
        self._model = model
        self._options = options
        self._count: collections.Counter[str] = collections.Counter()
        self._ready: collections.deque[_Entry] = collections.deque()
        self._closed = False
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._work = threading.Condition(self._lock)
        self._own = threading.local()
        workers = options.workers or available_cores()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode", initializer=self._mark)
        # A daemon: a program that ends without closing does not hang.
        self._runner = threading.Thread(target=self._run, name="batches", daemon=True)
        self._runner.start()

    @property
    def traffic(self) -> Traffic:
        """The counts, all of one moment."""
        with self._lock:
            return Traffic(**self._count)

    def submit(self, image: GivenImage, *, block: bool = False, timeout: float | None = None) -> Future[Row]:
        """See :meth:`~sad_runtime.classifier.Classifier.submit`."""
        with self._lock:
            if block:
                self._room.wait_for(lambda: self._closed or self._has_room, timeout)
            if self._closed:
                raise UserError("the classifier is closed")
            entry = _Entry(as_item(image, self._count["accepted"]))
            if not self._has_room:
                self._count["refused"] += 1
                raise QueueFullError(self._options.max_waiting)
            self._pool.submit(self._decode, entry)
            self._count["accepted"] += 1
            self._count["waiting"] += 1
        return entry.future

    @property
    def _has_room(self) -> bool:
        return self._count["waiting"] < self._options.max_waiting

    def close(self) -> None:
        """Accept nothing more, answer what was accepted, end the threads. May be called twice.

        Raises:
            UserError: A callback of a future calls it, in a thread that would wait for itself.
        """
        if getattr(self._own, "yes", False):
            raise UserError("a future's callback cannot close the classifier, which waits for its answer")
        with self._lock:
            self._closed = True
            self._room.notify_all()
            self._work.notify()
        self._runner.join()
        self._pool.shutdown(wait=True)

    def _mark(self) -> None:
        self._own.yes = True

    def _decode(self, entry: _Entry) -> None:
        """Accepted → decoded; in the pool."""
        if entry.future.cancelled() and not entry.claim():
            self._finish([(entry, None)])
            return
        try:
            entry.load(self._model, self._options.max_pixels)
        except BaseException as error:  # a stranger's file object may raise anything
            self._finish([(entry, error if entry.claim() else None)])
            return
        with self._lock:
            self._ready.append(entry)
            self._work.notify()

    def _run(self) -> None:
        """Decoded → answered; the model's thread."""
        self._mark()
        while batch := self._next_batch():
            claimed = [(entry, entry.claim()) for entry in batch]
            self._finish([(entry, None) for entry, wanted in claimed if not wanted])
            if entries := [entry for entry, wanted in claimed if wanted]:
                self._finish(list(zip(entries, self._classify(entries), strict=True)))

    def _next_batch(self) -> list[_Entry]:
        """The oldest images, once there are enough or the first has waited long enough; none at the end."""
        ready, most = self._ready, self._options.max_batch
        with self._lock:
            self._work.wait_for(lambda: ready or (self._closed and not self._count["waiting"]))
            if not ready:
                return []
            until = ready[0].since + self._options.max_wait_ms / 1000
            while len(ready) < most and (left := until - time.monotonic()) > 0:
                if self._closed and len(ready) == self._count["waiting"]:
                    break  # nobody comes any more
                self._work.wait(left)
            return [ready.popleft() for _ in range(min(most, len(ready)))]

    def _classify(self, entries: Sequence[_Entry]) -> list[Row | BaseException]:
        """A row or an error each. Where a batch fails, its images are tried alone, unless nobody is there."""
        outputs = [LOGITS]
        if PLAIN_LOGITS in self._model.backend.output_names:
            outputs.append(PLAIN_LOGITS)
        with self._lock:
            self._count["batches"] += 1
        try:
            images = np.stack([entry.pixels for entry in entries])
            prediction = self._model.predict_checked(images, outputs=outputs)
            rows = rows_of(
                [entry.row for entry in entries],
                prediction,
                self._model.manifest.classes,
                top_k=self._options.top_k,
                logits=self._options.logits,
            )
        except (BackendError, MemoryError) as error:
            if len(entries) == 1 or isinstance(error, UnavailableError):
                return [error] * len(entries)
            return [outcome for entry in entries for outcome in self._classify([entry])]
        except Exception as error:  # a bug: whoever asked has its traceback, and the thread lives on
            return [error] * len(entries)
        return [ImageError(*row.error) if row.error is not None else row for row in rows]

    def _finish(self, outcomes: Sequence[tuple[_Entry, Row | BaseException | None]]) -> None:
        """Make room, then tell; ``None`` is for those who no longer ask."""
        kinds = [
            "cancelled" if outcome is None else "answered" if isinstance(outcome, Row) else "failed"
            for _, outcome in outcomes
        ]
        with self._lock:
            self._count.update(kinds)
            self._count["waiting"] -= len(kinds)
            self._room.notify(len(kinds))
            if self._closed:
                self._work.notify()
        for entry, outcome in outcomes:
            with contextlib.suppress(InvalidStateError):  # somebody else has set it
                if isinstance(outcome, Row):
                    entry.future.set_result(outcome)
                elif outcome is not None:
                    entry.future.set_exception(outcome)


class _Entry:
    """An image on its way, and who waits for it."""

    def __init__(self, item: Item) -> None:
        self.future: Future[Row] = Future()
        self.since = 0.0
        self.row = Row(item.name)
        self.pixels: npt.NDArray[np.float32] = np.empty(0, np.float32)
        self._item: Item | None = item

    def load(self, model: Model, max_pixels: int) -> None:
        """Decode it, and let the file go.

        Raises:
            ImageError: It cannot be used.
        """
        item, self._item = self._item, None
        assert item is not None
        stamp = item.stamp()
        loaded = load_item(item, model.manifest.preprocessing, max_pixels=max_pixels)
        self.row = Row(item.name, frames=loaded.frames)
        if stamp is not None:
            self.row = self.row._replace(size=stamp.size, mtime_ns=stamp.mtime_ns)
        self.pixels = loaded.pixels
        self.since = time.monotonic()

    def claim(self) -> bool:
        """Whether it is still asked for; from now on it cannot be cancelled. To be called once."""
        return self.future.set_running_or_notify_cancel()
