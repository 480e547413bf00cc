"""Paths → rows: decoded in threads, classified in batches, in the order given, in bounded memory.

Pillow gives up Python's lock while it decodes and onnxruntime while it computes, so threads overlap both. A
bad image is a row of its own and never stops the others.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .backends.protocol import LOGITS, SALIENCY
from .classifier import Classifier
from .devices import available_cores
from .errors import ErrorCode, ImageError
from .manifest import Preprocessing
from .overlay import OverlayWriter
from .preprocess import load
from .results import Failure, Row, rank

_Decoded = npt.NDArray[np.float32] | Failure


def classify(
    classifier: Classifier,
    paths: Iterable[Path],
    *,
    batch_size: int = 32,
    workers: int | None = None,
    top_k: int = 5,
    overlays: OverlayWriter | None = None,
) -> Generator[list[Row], None, None]:
    """Classify image files.

    At most three batches and one image a worker are held in memory at a time. Closing the iterator early
    cancels what has not begun.

    Args:
        classifier: The loaded bundle.
        paths: Image files; read as they are needed, so a generator may go on for ever.
        batch_size: Consecutive images given to the backend at once.
        workers: Decoding threads; by default the cores this process may use.
        top_k: Classes in each ranking.
        overlays: Where saliency overlays are written, if they are.

    Yields:
        The rows of one batch, in the order of ``paths``; a row is yielded after its overlay was written.

    Raises:
        BackendError: A batch could not be run.
        UserError: An overlay cannot be written.
    """
    workers = workers or available_cores()
    preprocessing = classifier.manifest.preprocessing
    remaining = iter(paths)
    pending: deque[tuple[Path, Future[_Decoded]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        while True:
            ahead = 2 * batch_size + workers - len(pending)
            pending.extend(
                (path, pool.submit(_decode, path, preprocessing))
                for path in itertools.islice(remaining, ahead)
            )
            if not pending:
                return
            batch = [pending.popleft() for _ in range(min(batch_size, len(pending)))]
            yield _classify_batch(
                classifier, [(path, future.result()) for path, future in batch], top_k, overlays, pool
            )
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode(path: Path, preprocessing: Preprocessing) -> _Decoded:
    try:
        return load(path, preprocessing)
    except ImageError as error:
        return Failure(error.code, error.message)


def _classify_batch(
    classifier: Classifier,
    batch: list[tuple[Path, _Decoded]],
    top_k: int,
    overlays: OverlayWriter | None,
    pool: ThreadPoolExecutor,
) -> list[Row]:
    rows = {
        i: Row(os.fspath(path), error=decoded)
        for i, (path, decoded) in enumerate(batch)
        if isinstance(decoded, Failure)
    }
    good = [(i, path, decoded) for i, (path, decoded) in enumerate(batch) if not isinstance(decoded, Failure)]
    if good:
        images = np.stack([image for _, _, image in good])
        prediction = classifier.predict_checked(images, outputs=(LOGITS, SALIENCY) if overlays else (LOGITS,))
        rankings = rank(prediction.logits, classifier.manifest.classes, top_k)
        written: dict[int, Future[Path]] = {}
        if overlays is not None and prediction.saliency is not None:
            for n, (i, path, _) in enumerate(good):
                if rankings[n] is not None:
                    written[i] = pool.submit(overlays.write, path, images[n], prediction.saliency[n])
        for n, (i, path, _) in enumerate(good):
            ranking = rankings[n]
            if ranking is None:
                failure = Failure(ErrorCode.NON_FINITE, "the model's logits are not finite")
                rows[i] = Row(os.fspath(path), error=failure)
            else:
                overlay = os.fspath(written[i].result()) if i in written else None
                rows[i] = Row(os.fspath(path), ranking, saliency=overlay)
    return [rows[i] for i in range(len(batch))]
