"""A bundle as a classifier: ``with Classifier.load("sad-model") as c: c.predict(images).labels``."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Generator, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import numpy.typing as npt

from .backends import Backend, BackendOptions, OpenedBackend, open_backend
from .backends.batch_limit import Notice, ignore
from .backends.protocol import LOGITS, PLAIN_LOGITS, SALIENCY
from .backends.server import Server, open_server
from .bundle import Bundle
from .choices import BackendChoice, choose
from .errors import BundleError, UserError
from .manifest import Manifest
from .prediction import Prediction, joined

if TYPE_CHECKING:
    from concurrent.futures import Future

    from .batching import Batcher, Batching, Traffic
    from .given import GivenImage
    from .pipeline import Pictures
    from .results.row import Row

OUTPUTS = (LOGITS, SALIENCY, PLAIN_LOGITS)
"""What :meth:`Classifier.predict` can return."""

_PIECE = 32
"""Images of files that run at once, as ``infer``'s batches."""


class Classifier:
    """A loaded bundle. A context manager, and safe to use from several threads.

    The backend runs one batch at a time, on all cores. Most backends allow no more, and in onnxruntime on the
    CPU four at once are at most a fifth faster (benchmarks/serving.py). :meth:`submit` makes large batches
    of what many threads ask.

    Args:
        bundle: The opened bundle.
        opened: Its loaded backend, which the classifier closes.
        batching: How :meth:`submit` makes batches, if not by the defaults.
    """

    def __init__(self, bundle: Bundle, opened: OpenedBackend, *, batching: Batching | None = None) -> None:
        self.bundle = bundle
        self.backend: Backend = opened.backend
        self.backend_reason = opened.reason
        self._running = threading.Lock()
        self._batching = batching
        self._batcher: Batcher | None = None
        self._starting = threading.Lock()
        self._closed = False

    @classmethod
    def load(
        cls,
        bundle: Bundle | str | os.PathLike[str],
        *,
        backend: BackendChoice | str = BackendChoice.AUTO,
        precision: str = "fp32",
        tf32: bool = False,
        device: str = "CPU",
        unverified: bool = False,
        notice: Notice = ignore,
        batching: Batching | None = None,
        server: Server | None = None,
    ) -> Classifier:
        """Load a bundle.

        Args:
            bundle: An opened bundle or its folder.
            backend: ``auto``, ``cpu``, ``openvino``, ``cuda``, ``tensorrt`` or ``rtx``; see
                :func:`~sad_runtime.backends.open_backend`.
            precision: Which of the bundle's graphs or engines.
            tf32: Whether a GPU may round products of float32 to TF32: faster, less exact. An engine must have
                been built so.
            device: What the ``openvino`` backend runs on, by OpenVINO's name.
            unverified: Load also what does not compute here what the bundle's references say.
            notice: Told once, in one line, if memory is short and batches become smaller, or of what
                ``unverified`` lets pass.
            batching: How :meth:`submit` makes batches.
            server: Where the bundle's model runs instead of here; ``backend`` is ``auto`` then.

        Raises:
            BundleError: The bundle cannot be used.
            BackendError: The backend asked for cannot run here, or computes something else.
            UserError: No such backend.
        """
        choice = choose(BackendChoice, backend, "backend")
        options = BackendOptions(
            precision=precision, tf32=tf32, device=device, unverified=unverified, notice=notice
        )
        opened_bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        if server is not None:
            if choice is not BackendChoice.AUTO:
                raise UserError(f"a server runs the model, not {choice} here", hint="leave out --backend")
            return cls(opened_bundle, open_server(opened_bundle, server, options), batching=batching)
        return cls(opened_bundle, open_backend(opened_bundle, choice, options), batching=batching)

    def __repr__(self) -> str:
        manifest = self.manifest
        channels, height, width = manifest.preprocessing.shape
        defence = "no defence" if self.bundle.plain else f"η = {manifest.defence.eta:g}"
        return (
            f"<Classifier of {self.bundle.root}: {manifest.model.name}, {self._classes} classes, "
            f"images {channels}×{height}×{width}, {defence}, on {self.backend_name}>"
        )

    @property
    def manifest(self) -> Manifest:
        """What the bundle says."""
        return self.bundle.manifest

    @property
    def backend_name(self) -> str:
        """``cpu``, ``openvino``, ``cuda``, ``tensorrt`` or ``rtx``."""
        return self.backend.name

    def stream(
        self,
        sources: GivenImage | Iterable[GivenImage],
        *,
        batch_size: int = 32,
        workers: int | None = None,
        top_k: int = 5,
        logits: bool = False,
        saliency_stats: bool = False,
        fast_decode: bool = False,
        pictures: Sequence[Pictures] = (),
    ) -> Generator[Row, None, None]:
        """Classify image files as ``sad-deploy infer`` does: in batches, decoded in threads, in order.

        ``for row in classifier.stream("photos/"): print(row.path, row.class_name)``. Memory is bounded,
        however many images there are. Closing the iterator, or leaving it to be collected, ends the threads.

        Args:
            sources: One folder, file, pattern, list or archive as the command line takes it; or an iterable,
                endless if it likes, of images in any form that :meth:`predict` takes one, or of the items of
                :func:`~sad_runtime.sources.open_sources`, which counts what it leaves out for its extension.
                What has no name of its own is ``images[i]`` in its row, counted from 0.
            batch_size: Consecutive images given to the backend at once.
            workers: Decoding threads; by default the cores this process may use.
            top_k: Classes in each ranking.
            logits: Whether rows hold all logits.
            saliency_stats: Whether rows hold the size of the saliency.
            fast_decode: Whether JPEG is decoded at a lower resolution where that suffices.
            pictures: What draws the saliency, for example an :class:`~sad_runtime.overlay.OverlayWriter`.

        Yields:
            One row per image; for an image that cannot be used, a row with an error.

        Raises:
            BackendError: A batch could not be run.
            UserError: An option is out of range, a source does not exist, or a picture cannot be written.
        """
        # Here, so that who predicts arrays does not pay for reading files.
        from .given import is_one_image
        from .pipeline import Options, classify
        from .sources import open_sources

        options = Options(
            batch_size=batch_size,
            workers=workers,
            top_k=top_k,
            logits=logits,
            saliency_stats=saliency_stats,
            fast_decode=fast_decode,
            pictures=pictures,
        )
        with contextlib.ExitStack() as stack:
            if isinstance(sources, (str, os.PathLike)):
                items: Iterable[GivenImage] = stack.enter_context(open_sources([os.fspath(sources)]))
            else:
                items = [sources] if is_one_image(sources) else cast("Iterable[GivenImage]", sources)
            batches = stack.enter_context(contextlib.closing(classify(self, items, options)))
            for rows in batches:
                yield from rows

    def predict(
        self, images: GivenImage | Iterable[GivenImage], *, outputs: Sequence[str] = (LOGITS,)
    ) -> Prediction:
        """Classify one image or several, with the defence.

        Args:
            images: (N, C, H, W) floats in [0, 1], N may be 0: the graph's input itself, taken as it is where
                it is float32. Or one image, or a sequence of images, each a path, the bytes of an image file,
                a binary file object, a PIL image, or an array: (C, H, W) floats, or a decoded picture of any
                size, (H, W) or (H, W, C) uint8; (N, H, W, C) uint8 is several. They are prepared as ``infer``
                prepares files, all in memory at once; :meth:`stream` is for more than fit.
            outputs: Which of ``logits``, ``saliency`` and ``plain_logits`` to return; logits always are.

        Returns:
            The outputs, first axis N; of one image, 1.

        Raises:
            ImageError: The image cannot be used; of several, :class:`~sad_runtime.errors.BadImagesError`,
                whose ``failures`` has each bad one by its index. :meth:`stream` gives an error row each.
            UserError: Wrong type, shape or range, or a value that is not finite.
            BundleError: The graph has no such output.
            BackendError: The batch could not be run.
        """
        if isinstance(images, np.ndarray) and images.ndim == 4 and images.dtype != np.uint8:
            return self.predict_checked(self._checked(images), outputs=outputs)
        # Here, so that who predicts arrays does not pay for reading files.
        from .given import is_one_image, load_all, preprocess, several

        preprocessing = self.manifest.preprocessing
        if is_one_image(images):
            return self.predict_checked(preprocess(images, preprocessing)[None], outputs=outputs)
        batch = load_all(several(images), preprocessing)
        starts = range(0, max(len(batch), 1), _PIECE)
        return joined([self.predict_checked(batch[i : i + _PIECE], outputs=outputs) for i in starts])

    def predict_checked(
        self, images: npt.NDArray[np.float32], *, outputs: Sequence[str] = (LOGITS,)
    ) -> Prediction:
        """:meth:`predict` for images known to be contiguous, of the right type and shape, and in [0, 1]."""
        wanted = tuple(dict.fromkeys((LOGITS, *outputs)))
        if unknown := [name for name in wanted if name not in OUTPUTS]:
            raise UserError(f"no output {', '.join(unknown)}; there are {', '.join(OUTPUTS)}")
        if missing := [name for name in wanted if name not in self.backend.output_names]:
            raise BundleError(
                f"the graph of {self.bundle.root} has no output {', '.join(missing)}",
                hint=None if self.bundle.plain else f"sad-deploy export {self.bundle.root}",
            )
        if len(images):
            with self._running:
                values = self.backend.run(images, wanted)
        else:  # engines take no empty batch
            row = {
                LOGITS: (self._classes,),
                PLAIN_LOGITS: (self._classes,),
                SALIENCY: self.backend.input_shape,
            }
            values = {name: np.empty((0, *row[name]), np.float32) for name in wanted}
        logits = values[LOGITS]
        if logits.shape != (len(images), self._classes):
            raise BundleError(
                f"{self.bundle.root}: the graph returns logits of {logits.shape[1:]}, the manifest has "
                f"{self._classes} classes",
                hint=f"sad-deploy export {self.bundle.root}",
            )
        return Prediction(logits, values.get(SALIENCY), values.get(PLAIN_LOGITS))

    def submit(self, image: GivenImage, *, block: bool = False, timeout: float | None = None) -> Future[Row]:
        """Classify one image together with those that other threads submit at about the same time.

        It is decoded in a pool and joins the next batch. The first call starts the threads, :meth:`close`
        ends them. Callbacks of a future run in these threads: they should be short, and neither wait for
        another future, nor submit with ``block``, nor close.

        Args:
            image: One image in any form that :meth:`predict` takes; bytes and file objects are used up.
            block: Wait for room where there is none.
            timeout: Seconds to wait at most; by default as long as it takes.

        Returns:
            Its row, as of :meth:`stream`, but never one with an error: that is raised by ``result()``, as an
            ImageError, or a BackendError if the image could not be run even alone. Until its batch begins it
            can be cancelled.

        Raises:
            QueueFullError: As many images are waiting as ``batching`` allows.
            UserError: The classifier is closed, or this is no image at all.
        """
        return self._started().submit(image, block=block, timeout=timeout)

    @property
    def traffic(self) -> Traffic:
        """What came through :meth:`submit`, in numbers."""
        from .batching import Traffic

        return Traffic() if self._batcher is None else self._batcher.traffic

    def _started(self) -> Batcher:
        from .batching import Batcher, Batching

        with self._starting:
            if self._batcher is None:
                if self._closed:
                    raise UserError("the classifier is closed")
                self._batcher = Batcher(self, self._batching or Batching())
            return self._batcher

    @property
    def _classes(self) -> int:
        return len(self.manifest.classes)

    def _checked(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Four axes of floats as contiguous float32, themselves if they are."""
        shape = self.manifest.preprocessing.shape
        expected = f"(N, {', '.join(map(str, shape))}) float32 in [0, 1]"
        if images.dtype.kind != "f":
            raise UserError(f"images must be {expected}, got {images.dtype}", hint="uint8 is (N, H, W, C)")
        if images.shape[1:] != shape:
            raise UserError(f"images must be {expected}, got shape {images.shape}")
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is found below
            images = np.ascontiguousarray(images, np.float32)
        # One pass for the good case: NaN fails both comparisons.
        if images.size and not (images.min() >= 0 and images.max() <= 1):
            finite = np.isfinite(images).all(axis=(1, 2, 3))
            if not finite.all():
                raise UserError(f"images[{int(np.argmin(finite))}] holds a value that is not finite")
            raise UserError(
                f"images must be in [0, 1], got {images.min():g} to {images.max():g}",
                hint="the graph does the mean/std normalisation itself; give it pixels",
            )
        return images

    def close(self) -> None:
        """Answer what :meth:`submit` accepted, then give back memory and devices. May be called twice."""
        with self._starting:  # from here on nobody starts it
            self._closed = True
        if self._batcher is not None:
            self._batcher.close()
        with self._running:
            self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
