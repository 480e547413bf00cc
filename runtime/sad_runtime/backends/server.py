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
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle
from ..choices import BackendChoice
from ..errors import BackendError, BundleError, UserError
from ..extras import require
from .accept import found_by
from .choose import OpenedBackend
from .load import BackendOptions, Loaded, forms
from .protocol import INPUT, LOGITS

Images = npt.NDArray[Any]

_SCHEMES = {"grpc": "tritonclient.grpc", "http": "tritonclient.http"}
_ADDRESS = re.compile(r"(?P<scheme>grpc|http)://(?P<host>[^/\s]+:\d+)/?")
_ONCE_MORE = frozenset(("408", "429", "502", "503", "504")) | {
    f"StatusCode.{name}" for name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
}
"""Answers of a server that may be another one in a moment."""

_NO_SUCH_CALL = frozenset(("404", "405", "501", "StatusCode.UNIMPLEMENTED"))

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
        if not _ADDRESS.fullmatch(self.url):
            raise UserError(
                f"{self.url!r} is no address of a server", hint="grpc://HOST:8001 or http://HOST:8000"
            )
        if not (0 < self.timeout < math.inf and 0 <= self.patience < math.inf and self.concurrency >= 1):
            raise UserError("a server's times are positive numbers of seconds")


def model_name(bundle: Bundle) -> str:
    """A bundle's name on a server: its folder's, in the letters that names have there."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", bundle.root.resolve().name).lstrip("._-") or "model"


class _NotAvailableError(Exception):
    """Ask again."""


class _Client:
    """A connection by gRPC or HTTP, in ``tritonclient``'s words, which are nearly the same for both."""

    def __init__(self, server: Server) -> None:
        found = _ADDRESS.fullmatch(server.url)
        assert found is not None
        self._module = require(_SCHEMES[found["scheme"]], extra="server", need="--server")
        self._is_grpc = found["scheme"] == "grpc"
        times = () if self._is_grpc else ("connection_timeout", "network_timeout")
        self._timed = {"client_timeout": server.timeout} if self._is_grpc else {}
        self._client = self._module.InferenceServerClient(
            found["host"], **dict.fromkeys(times, server.timeout)
        )
        self._json = {"as_json": True} if self._is_grpc else {}

    def described(self, model: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._client.get_model_metadata(model, **self._json, **self._timed)
        return found

    def largest_batch(self, model: str) -> int | None:
        """Triton says it; others may not have that call."""
        from tritonclient.utils import InferenceServerException

        try:
            found = self._client.get_model_config(model, **self._json, **self._timed)
        except InferenceServerException as error:
            if error.status() not in _NO_SUCH_CALL:
                raise
            return None
        size = int(found.get("config", found).get("max_batch_size", 0))
        return size or None

    def server(self) -> str:
        found = self._client.get_server_metadata(**self._json, **self._timed)
        return f"{found.get('name', 'server')} {found.get('version', '')}".strip()

    def infer(self, model: str, images: Images, kind: str, outputs: Sequence[str]) -> dict[str, Images]:
        given = self._module.InferInput(INPUT, list(images.shape), kind)
        given.set_data_from_numpy(images)
        asked = [self._module.InferRequestedOutput(name) for name in outputs]
        answer = self._client.infer(model, [given], outputs=asked, **self._timed)
        return {name: answer.as_numpy(name) for name in outputs}

    def close(self) -> None:
        self._client.close()


class ServerBackend:
    """See the module and :class:`~sad_runtime.backends.protocol.Backend`.

    Args:
        server: Where it is.
        model: Its name there.

    Raises:
        BackendError: The server does not answer, lacks the model, or has one of another form.
    """

    name = "server"

    def __init__(self, server: Server, model: str) -> None:
        self._server, self._model = server, model
        self._local = threading.local()
        self._connections: list[_Client] = []
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(server.concurrency)
        try:
            start = dataclasses.replace(server, patience=min(server.patience, _LONGEST_PAUSE))
            described = self._ask(lambda client: client.described(model), start)
            self.runs_on = (
                f"{self._ask(lambda client: client.server(), start)} at {server.url}, model {model}"
            )
            self.max_batch = self._ask(lambda client: client.largest_batch(model), start)
            self._kind, self.input_shape = self._image_of(described)
            self.output_names = tuple(str(each["name"]) for each in described["outputs"])
        except BaseException:
            self.close()
            raise

    def _image_of(self, described: Mapping[str, Any]) -> tuple[str, tuple[int, int, int]]:
        """Element type and (C, H, W) of the input."""
        inputs = described["inputs"]
        sizes = [int(n) for n in inputs[0]["shape"]] if len(inputs) == 1 else []
        if len(sizes) == 4 and inputs[0]["name"] == INPUT and inputs[0]["datatype"] in ("FP32", "UINT8"):
            first, second, third = sizes[1:]
            if inputs[0]["datatype"] == "UINT8":
                return "UINT8", (third, first, second)
            return "FP32", (first, second, third)
        found = ", ".join(f"{each['name']} {each['datatype']} {list(each['shape'])}" for each in inputs)
        raise BackendError(
            f"{self._model} at {self._server.url} takes {found}, not one batch of images called {INPUT!r}",
            hint="sad-deploy export --triton writes a model that does; --server-model names another",
        )

    def run(
        self, images: npt.NDArray[np.float32], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run a batch as requests of the size that the server takes, some at once; see the protocol."""
        given: Images = images
        if self._kind == "UINT8":
            given = np.ascontiguousarray(np.rint(images * 255).astype(np.uint8).transpose(0, 2, 3, 1))
        size = self.max_batch or _PIECE
        pieces = [given[i : i + size] for i in range(0, len(given), size)]
        parts = list(self._pool.map(lambda piece: self._answer(piece, outputs), pieces))
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    def _answer(self, piece: Images, outputs: Sequence[str]) -> dict[str, Images]:
        found: dict[str, Images] = self._ask(
            lambda client: client.infer(self._model, piece, self._kind, outputs), self._server
        )
        for name, values in found.items():
            if values is None or len(values) != len(piece):
                raise BackendError(f"{self._model} at {self._server.url} answered without {name}")
        return found

    def _ask(self, question: Callable[[_Client], Any], server: Server) -> Any:
        """An answer, however often it takes to ask within the server's patience."""
        end, pause = time.monotonic() + server.patience, _FIRST_PAUSE
        while True:
            try:
                return self._once(question)
            except _NotAvailableError as error:
                left = end - time.monotonic()
                if left <= 0:
                    raise BackendError(
                        f"{server.url} has not answered for {server.patience:g} s: {error}",
                        hint="rows that are finished are kept: --resume goes on when it is there again",
                    ) from None
                time.sleep(min(left, pause * random.uniform(0.5, 1)))
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _once(self, question: Callable[[_Client], Any]) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return question(self._connection())
        except InferenceServerException as error:
            said = " ".join(str(error.message() or error).split())[:200]
            if error.status() in _ONCE_MORE or (error.status() is None and _is_about_connections(said)):
                raise _NotAvailableError(said) from error
            raise BackendError(
                f"{self._server.url} refuses {self._model}: {said}",
                hint="--server-model names the model; sad-deploy export --triton writes it",
            ) from error
        except (OSError, EOFError) as error:  # of HTTP: refused, reset, timed out, cut off
            self._drop()
            raise _NotAvailableError(" ".join(str(error).split()) or type(error).__name__) from error

    def _connection(self) -> _Client:
        """This thread's own: HTTP connections are for one thread."""
        found: _Client | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._local.connection = _Client(self._server)
            with self._lock:
                self._connections.append(found)
        return found

    def _drop(self) -> None:
        """A connection that broke is made anew."""
        self._local.connection = None

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


def _is_about_connections(said: str) -> bool:
    return any(word in said.lower() for word in ("timed out", "timeout", "connect", "closed"))


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
    backend = ServerBackend(server, server.model or model_name(bundle))
    try:
        expected = bundle.manifest.preprocessing.shape
        if backend.input_shape != expected:
            raise BundleError(
                f"{backend.runs_on} takes images of {backend.input_shape}, the bundle says {expected}"
            )
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
