"""Images → rows: read and decoded in threads, classified in batches, in the order given, in bounded memory.

Four stages run side by side: one thread finds the images, a pool decodes them, one thread runs the model, and
whoever iterates writes the rows. Pillow gives up Python's lock while it decodes and onnxruntime while it
computes. Each stage waits when the next one is behind. A bad image is a row of its own and stops nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Protocol, Self, cast

import numpy as np
import numpy.typing as npt

from .backends.protocol import LOGITS, PLAIN_LOGITS, SALIENCY, Backend
from .devices import available_cores
from .errors import ImageError, UserError
from .given import GivenImage, as_item, load_item
from .manifest import Manifest
from .prediction import Prediction
from .preprocessing import Loaded
from .results.answers import rows_of
from .results.row import Failure, Row
from .sources import Item, Stamp

_SECONDS_FOR_SOURCE = 1.0
"""How long the end waits for a source that does not answer, standard input for example."""


_NOTHING = object()
"""Follows the last image."""


class Model(Protocol):
    """What a pipeline asks of a :class:`~sad_runtime.classifier.Classifier`, which is built on top of it.

    Attributes:
        manifest: How images are prepared, and the classes' names.
        backend: Says which outputs there are.
    """

    @property
    def manifest(self) -> Manifest: ...

    @property
    def backend(self) -> Backend: ...

    def predict_checked(self, images: npt.NDArray[np.float32], *, outputs: Sequence[str]) -> Prediction:
        """Classify (N, C, H, W) contiguous images in [0, 1]."""
        ...


class Pictures(Protocol):
    """Takes what is needed to draw an image and its saliency; called from several threads."""

    def write(
        self, name: str, image: npt.NDArray[np.float32], saliency: npt.NDArray[np.float32] | None
    ) -> Path | None:
        """Draw or keep one image.

        Args:
            name: The item's name.
            image: (C, H, W) in [0, 1]: what the graph was given.
            saliency: (C, H, W), S; finite. None of a classifier without a defence.

        Returns:
            The picture's file, if it is to be named in the image's row.

        Raises:
            UserError: It cannot be written.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How images are classified and what their rows hold.

    Attributes:
        batch_size: Consecutive images given to the backend at once.
        workers: Decoding threads; by default the cores this process may use.
        top_k: Classes in each ranking.
        logits: Whether rows hold all logits.
        saliency_stats: Whether rows hold the size of the saliency.
        fast_decode: Whether JPEG is decoded at a lower resolution where that suffices; pixels
            differ a little.
        pictures: What draws images and their saliency.
    """

    batch_size: int = 32
    workers: int | None = None
    top_k: int = 5
    logits: bool = False
    saliency_stats: bool = False
    fast_decode: bool = False
    pictures: Sequence[Pictures] = ()

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")


def classify(
    classifier: Model, items: Iterable[GivenImage], options: Options | None = None
) -> Generator[list[Row], None, None]:
    """Classify images; a :class:`Pipeline` as a generator, which ends its threads when it is closed.

    Args:
        classifier: The loaded bundle.
        items: See :class:`Pipeline`.
        options: See :class:`Options`.

    Yields:
        The rows of one batch.

    Raises:
        UserError: See :class:`Pipeline`.
    """
    with Pipeline(classifier, items, options or Options()) as batches:
        yield from batches


class Pipeline:
    """A run over images; an iterator over the rows of one batch each, in the order of the images.

    A context manager, which cancels what has not begun. In memory are the images of one batch in the model,
    of two that are being decoded, one more for each worker and, with pictures, of two batches being drawn.

    Args:
        classifier: The loaded bundle; others may use it meanwhile.
        items: Images in any form, see :data:`~sad_runtime.given.GivenImage`, or items; read as they are
            needed, so a generator may go on for ever.
        options: See :class:`Options`.

    Raises:
        BackendError: On iteration: a batch could not be run.
        UserError: On iteration: a picture cannot be written, a source not be read, or something is no image.
    """

    def __init__(self, classifier: Model, items: Iterable[GivenImage], options: Options) -> None:
        workers = options.workers or available_cores()
        self._classifier = classifier
        self._options = options
        self._stopped = False
        self._is_last = False
        self._decoded: SimpleQueue[_Decoding | _End] = SimpleQueue()
        self._classified: SimpleQueue[_Classified | _End] = SimpleQueue()
        self._room_to_decode = threading.Semaphore(2 * options.batch_size + workers)
        self._room_to_classify = threading.Semaphore(1)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        # Daemons: a source that never answers must not keep the process alive.
        self._finder = threading.Thread(target=self._find, args=(items,), name="find", daemon=True)
        self._runner = threading.Thread(target=self._run, name="model", daemon=True)
        self._finder.start()
        self._runner.start()

    def __iter__(self) -> Iterator[list[Row]]:
        return self

    def __next__(self) -> list[Row]:
        if self._is_last:
            raise StopIteration
        result = self._classified.get()
        self._room_to_classify.release()
        if isinstance(result, _End):
            self._is_last = True
            raise result.error or StopIteration
        return result.rows()

    def stop(self) -> None:
        """Begin no further batch; the one in the model is still returned. Safe in a signal handler."""
        self._stopped = True
        self._decoded.put(_End())  # wakes the model's thread, should it be waiting for images

    def close(self) -> None:
        """End the threads; what has not begun is cancelled. May be called twice."""
        self.stop()
        self._room_to_decode.release()
        self._room_to_classify.release()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._runner.join()
        self._finder.join(_SECONDS_FOR_SOURCE)
        self._pool.shutdown(wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find(self, items: Iterable[GivenImage]) -> None:
        """Items → decoding; the first stage's thread."""
        try:
            iterator = iter(items)
            for place in itertools.count():
                if not self._room_to_decode.acquire() or self._stopped:
                    break
                found = next(iterator, _NOTHING)
                if found is _NOTHING:
                    break
                item = as_item(cast(GivenImage, found), place)
                self._decoded.put(_Decoding(item, self._pool.submit(self._decode, item)))
        except BaseException as error:
            self._decoded.put(_End(error))
        else:
            self._decoded.put(_End())

    def _decode(self, item: Item) -> _Decoded:
        stamp = item.stamp()  # before reading: a file that changes meanwhile is then known to have changed
        try:
            image = load_item(item, self._classifier.manifest.preprocessing, fast=self._options.fast_decode)
        except ImageError as error:
            return _Decoded(stamp, Failure(error.code, error.message))
        return _Decoded(stamp, image)

    def _run(self) -> None:
        """Decoded images → rows; the model's thread."""
        try:
            end = None
            while end is None and not self._stopped:
                self._room_to_classify.acquire()
                batch, end = self._take_batch()
                if batch:
                    self._classified.put(self._classify(batch))
            if end is not None and end.error is not None:
                raise end.error
        except BaseException as error:
            self._classified.put(_End(error))
        else:
            self._classified.put(_End())

    def _take_batch(self) -> tuple[list[tuple[str, _Decoded]], _End | None]:
        """The next images, as many as a batch holds; fewer only at the end, none once stopped."""
        waiting: list[_Decoding] = []
        end = None
        while len(waiting) < self._options.batch_size and end is None:
            entry = self._decoded.get()
            if self._stopped:
                return [], _End()
            if isinstance(entry, _End):
                end = entry
            else:
                waiting.append(entry)
        batch = [(entry.item.name, entry.future.result()) for entry in waiting]
        if batch:
            self._room_to_decode.release(len(batch))
        return batch, end

    def _classify(self, batch: list[tuple[str, _Decoded]]) -> _Classified:
        rows = [decoded.row(name) for name, decoded in batch]
        good = [i for i, row in enumerate(rows) if row.error is None]
        if not good:
            return _Classified(rows, {})
        images = np.stack([decoded.image.pixels for _, decoded in batch if isinstance(decoded.image, Loaded)])
        prediction = self._classifier.predict_checked(images, outputs=self._outputs)
        classified = rows_of(
            [rows[i] for i in good],
            prediction,
            self._classifier.manifest.classes,
            top_k=self._options.top_k,
            logits=self._options.logits,
            statistics=self._options.saliency_stats,
        )
        drawn, saliency = {}, prediction.saliency
        for n, (i, row) in enumerate(zip(good, classified, strict=True)):
            rows[i] = row
            if row.error is None:
                drawn[i] = [
                    self._pool.submit(
                        pictures.write, row.path, images[n], None if saliency is None else saliency[n]
                    )
                    for pictures in self._options.pictures
                ]
        return _Classified(rows, drawn)

    @functools.cached_property
    def _outputs(self) -> tuple[str, ...]:
        """The first pass's logits are computed anyway; the saliency costs its transfer and is asked for."""
        outputs = [LOGITS]
        if PLAIN_LOGITS in self._classifier.backend.output_names:
            outputs.append(PLAIN_LOGITS)
        drawn = self._options.pictures and SALIENCY in self._classifier.backend.output_names
        if self._options.saliency_stats or drawn:
            outputs.append(SALIENCY)
        return tuple(outputs)


@dataclasses.dataclass(frozen=True, slots=True)
class _Decoded:
    """An image in memory, or why it is not."""

    stamp: Stamp | None
    image: Loaded | Failure

    def row(self, name: str) -> Row:
        """Its row, without a prediction."""
        size, mtime_ns = (self.stamp.size, self.stamp.mtime_ns) if self.stamp else (None, None)
        if isinstance(self.image, Failure):
            return Row(name, error=self.image, size=size, mtime_ns=mtime_ns)
        return Row(name, size=size, mtime_ns=mtime_ns, frames=self.image.frames)


@dataclasses.dataclass(frozen=True, slots=True)
class _Decoding:
    """An image on its way into memory."""

    item: Item
    future: Future[_Decoded]


@dataclasses.dataclass(frozen=True, slots=True)
class _Classified:
    """Rows of a batch, and for some of them the pictures that are being drawn."""

    batch: list[Row]
    drawn: dict[int, list[Future[Path | None]]]

    def rows(self) -> list[Row]:
        """The rows, once all pictures are drawn."""
        for i, pictures in self.drawn.items():
            for file in [picture.result() for picture in pictures]:
                if file is not None:
                    self.batch[i] = self.batch[i]._replace(saliency=os.fspath(file))
        return self.batch


@dataclasses.dataclass(frozen=True, slots=True)
class _End:
    """Nothing follows: all is done, or something is wrong."""

    error: BaseException | None = None
