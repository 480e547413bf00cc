"""A bundle's model on a server of the Open Inference Protocol (Triton, KServe, OpenVINO Model Server, …).

Images are read and prepared here and answers become rows here; only the graph runs there. A server that is
not available, or is too slow, is asked again, with longer and longer pauses; what it refuses is not.
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle
from ..choices import BackendChoice
from ..errors import BackendError, BundleError, UnavailableError, UserError
from .accept import found_by
from .choose import OpenedBackend
from .inference_client import ADDRESS, Client, Images, Input, NotAvailableError, RefusedError
from .load import BackendOptions, Loaded, forms
from .protocol import INPUT, LOGITS, SALIENCY

T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_PIECE = 16
"""Images of a request to a server that does not say how many it takes."""


@dataclasses.dataclass(frozen=True)
class Server:
    """Where a bundle's model runs, and how long it is waited for.

    Attributes:
        url: ``grpc://HOST:PORT`` or ``http://HOST:PORT``.
        model: Its name there; by default the bundle's folder, as ``sad-deploy export --triton`` names it.
        timeout: Seconds for one answer.
        patience: Seconds that a server is asked again for while it is not available; at the start, at most 5.
        concurrency: Requests at once.
    """

    url: str
    model: str | None = None
    timeout: float = 30.0
    patience: float = 60.0
    concurrency: int = 4

    def __post_init__(self) -> None:
        if not ADDRESS.fullmatch(self.url):
            raise UserError(
                f"{self.url!r} is no address of a server", hint="grpc://HOST:8001 or http://HOST:8000"
            )
        if not (0 < self.timeout < math.inf and 0 <= self.patience < math.inf and self.concurrency >= 1):
            raise UserError("a server's times are positive numbers of seconds")


def model_name(bundle: Bundle) -> str:
    """A bundle's name on a server: its folder's, in the letters that names have there."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", bundle.root.resolve().name).lstrip("._-") or "model"


class _RefusedByServerError(BackendError):
    """It answered that it will not."""


class ServerBackend:
    """See the module and :class:`~sad_runtime.backends.protocol.Backend`.

    Args:
        server: Where it is.
        model: Its name there.
        shape: (C, H, W) of the images that it should take; believed where the server says nothing of them.

    Raises:
        BackendError: The server does not answer, lacks the model, or has one of another form.
        BundleError: It takes other images.
    """

    name = "server"

    def __init__(self, server: Server, model: str, shape: tuple[int, int, int]) -> None:
        self._server, self._model, self.input_shape = server, model, shape
        self._local = threading.local()
        self._connections: list[Client] = []
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(server.concurrency)
        self._patience = min(server.patience, _LONGEST_PAUSE)
        self._begun = False
        try:
            self._begin()
        except BaseException:
            self.close()
            raise
        self._patience, self._begun = server.patience, True

    def _begin(self) -> None:
        """Ask the server what it is, and where it does not say, try."""
        described = self._ask(lambda client: client.described(self._model))
        name, takes_bytes = self._ask(lambda client: client.server())
        self.runs_on = f"{name} at {self._server.url}, model {self._model}"
        self.max_batch = self._ask(lambda client: client.largest_batch(self._model))
        self._size = self.max_batch or _PIECE
        self._input = self._input_of(described.get("inputs") or ())
        self.output_names = tuple(str(each["name"]) for each in described.get("outputs") or ())
        if not (self.output_names and takes_bytes):
            self.output_names = self._tried()

    def _input_of(self, inputs: Sequence[Mapping[str, Any]]) -> Input:
        """What the server takes; sizes that it leaves open, or does not say, are those of the bundle."""
        if not inputs:
            return Input(INPUT, "FP32")
        kind = inputs[0]["datatype"]
        sizes = [int(n) for n in inputs[0].get("shape", ())]
        if len(inputs) != 1 or len(sizes) != 4 or kind not in ("FP32", "UINT8"):
            found = (f"{each['name']} {each['datatype']} {list(each['shape'])}" for each in inputs)
            raise BackendError(
                f"{self._model} at {self._server.url} takes {', '.join(found)}, not one batch of images",
                hint="sad-deploy export --triton writes a model that does; --server-model names another",
            )
        if kind == "UINT8":
            sizes = [sizes[0], sizes[3], sizes[1], sizes[2]]
        if any(said not in (-1, here) for said, here in zip(sizes[1:], self.input_shape, strict=True)):
            raise BundleError(
                f"{self.runs_on} takes images of {tuple(sizes[1:])}, the bundle says {self.input_shape}"
            )
        return Input(str(inputs[0]["name"]), kind)

    def _tried(self) -> tuple[str, ...]:
        """The outputs of a black image, sent as bytes if the server takes them so, else as JSON's numbers."""
        black = self._sent(np.zeros((1, *self.input_shape), np.float32))
        try:
            found = self._ask(lambda client: client.infer(self._model, self._input, black, ()))
        except BackendError:
            self._input = dataclasses.replace(self._input, as_bytes=False)
            found = self._ask(lambda client: client.infer(self._model, self._input, black, ()))
        return tuple(found)

    def _sent(self, images: npt.NDArray[np.float32]) -> Images:
        if self._input.kind == "FP32":
            return images
        return np.ascontiguousarray(np.rint(images * 255).astype(np.uint8).transpose(0, 2, 3, 1))

    def run(
        self, images: npt.NDArray[np.float32], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run a batch as requests of the size that the server takes, some at once; see the protocol."""
        given, size = self._sent(images), self._size
        pieces = [given[i : i + size] for i in range(0, len(given), size)]
        parts = list(self._pool.map(lambda piece: self._answer(piece, outputs), pieces))
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    def _answer(self, piece: Images, outputs: Sequence[str]) -> dict[str, Images]:
        """A request's outputs. What is refused is asked in halves: servers limit their batches."""
        try:
            found = self._ask(lambda client: client.infer(self._model, self._input, piece, outputs))
        except _RefusedByServerError:
            if len(piece) == 1:
                raise
            half = (len(piece) + 1) // 2
            parts = [self._answer(part, outputs) for part in (piece[:half], piece[half:])]
            with self._lock:
                self._size = self.max_batch = min(self._size, half)
            return {name: np.concatenate([part[name] for part in parts]) for name in outputs}
        for name in outputs:
            if name not in found:
                raise BackendError(f"{self._model} at {self._server.url} answered without {name}")
            shape = found[name].shape
            wanted = self.input_shape if name == SALIENCY else shape[1:2]
            if shape != (len(piece), *wanted) or not wanted:
                raise BackendError(
                    f"{self._model} at {self._server.url} answered {name} of {shape} to {len(piece)} images"
                )
        return found

    def _ask(self, question: Callable[[Client], T]) -> T:
        """An answer, however often it takes to ask within the server's patience."""
        end, pause = time.monotonic() + self._patience, _FIRST_PAUSE
        while True:
            try:
                return self._once(question)
            except NotAvailableError as error:
                self._drop()
                left = end - time.monotonic()
                if left <= 0:
                    raise UnavailableError(
                        f"{self._server.url} has not answered for {self._patience:g} s: {error}",
                        hint="rows that are finished are kept: --resume goes on when it is there again",
                    ) from None
                time.sleep(min(left, pause * random.uniform(0.5, 1)))
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _once(self, question: Callable[[Client], T]) -> T:
        """An answer. A server that still loads refuses like one that lacks the model: it is asked which."""
        client = self._connection()
        try:
            return question(client)
        except RefusedError as error:
            if not client.is_ready(self._model if self._begun else None):
                raise NotAvailableError(str(error)) from error
            raise _RefusedByServerError(
                f"{self._server.url} refuses {self._model}: {error}",
                hint="--server-model names the model; sad-deploy export --triton writes it",
            ) from error

    def _connection(self) -> Client:
        """This thread's own: HTTP connections are for one thread."""
        found: Client | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._local.connection = Client(self._server.url, self._server.timeout)
            with self._lock:
                self._connections.append(found)
        return found

    def _drop(self) -> None:
        """This thread's connection may be broken: the next question makes another."""
        with self._lock:
            dropped, self._local.connection = self._local.connection, None
            if dropped in self._connections:  # not so once closed
                self._connections.remove(dropped)
                dropped.close()

    def close(self) -> None:
        """End all connections. May be called twice."""
        self._pool.shutdown(cancel_futures=True)
        with self._lock:
            while self._connections:
                self._connections.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_server(bundle: Bundle, server: Server, options: BackendOptions) -> OpenedBackend:
    """A bundle's model on a server, compared with the bundle's references at every start.

    Args:
        bundle: Says how images are prepared, what the classes are called, and what the model should compute.
        server: Where it runs.
        options: ``precision`` is that of the graph there; ``unverified`` lets another answer pass.

    Raises:
        BackendError: The server does not answer, lacks the model, or it computes something else.
        BundleError: It takes other images than the bundle's.
        MissingExtraError: ``tritonclient`` is not installed.
    """
    if bundle.plain is not None:
        raise UserError("--server is for defended bundles", hint="leave out --plain")
    shape = bundle.manifest.preprocessing.shape
    backend = ServerBackend(server, server.model or model_name(bundle), shape)
    try:
        if LOGITS not in backend.output_names:
            raise BundleError(
                f"{backend.runs_on} has no output {LOGITS!r}: {', '.join(backend.output_names)}"
            )
        return OpenedBackend(backend, _verified(bundle, backend, options))
    except BaseException:
        backend.close()
        raise


def _verified(bundle: Bundle, backend: ServerBackend, options: BackendOptions) -> str:
    """How it was, in a few words."""
    file = bundle.graph(options.precision, forms(BackendChoice.CPU, options.precision)).file
    record = found_by(bundle, Loaded(backend, file), options)
    if record is None:
        return f"{backend.runs_on}; not verified: the bundle has no references"
    if not record.shortfalls:
        return f"{backend.runs_on}; verified on {record.images} images"
    message = f"{backend.runs_on} does not compute what {bundle.root} says: {'; '.join(record.shortfalls)}"
    if not options.unverified:
        raise BackendError(message, hint="serve this bundle's model; --unverified takes it anyway")
    options.notice(message)
    return f"{backend.runs_on}; unverified"
