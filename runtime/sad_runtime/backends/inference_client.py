"""One connection to a server of the Open Inference Protocol, by gRPC or HTTP, in ``tritonclient``'s words.

What the protocol leaves to servers is settled here: which calls there are, whether HTTP takes bytes or
numbers in JSON, where gRPC has its values, and which answers are worth asking again.
"""

from __future__ import annotations

import dataclasses
import http.client
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..extras import require

Images = npt.NDArray[Any]
T = TypeVar("T")

ADDRESS = re.compile(r"(?P<scheme>grpc|http)://(?P<host>[^/\s]+:\d+)/?")

_MODULES = {"grpc": "tritonclient.grpc", "http": "tritonclient.http"}
_ONCE_MORE = frozenset(("408", "429", "502", "503", "504")) | {
    f"StatusCode.{name}" for name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
}
"""Answers of a server that may be another one in a moment."""

_NO_SUCH_CALL = frozenset(("404", "405", "501", "StatusCode.UNIMPLEMENTED"))
_VAGUE = frozenset((None, *(f"StatusCode.{name}" for name in ("INTERNAL", "UNKNOWN", "CANCELLED"))))
_CUT_OFF = ("timed out", "timeout", "connect", "closed", "rst_stream")
"""What a vague answer says where a connection ended."""

_TOO_LONG = "larger than max"
"""Of a message: gRPC has the status of a full server for it."""

_NOT_JSON = "an exception occurred in the client"
"""How ``tritonclient`` says of a refusal that it is not worded as Triton's; its details have the answer."""

_BYTES_OVER_HTTP = "binary_tensor_data"


class NotAvailableError(Exception):
    """Ask again."""


class RefusedError(Exception):
    """The server answers that it will not, or nothing that can be read."""


@dataclasses.dataclass(frozen=True)
class Input:
    """What a model takes: its name, ``FP32`` or ``UINT8``, and whether HTTP carries tensors as bytes."""

    name: str
    kind: str
    as_bytes: bool = True


class Client:
    """A connection, for one thread.

    Args:
        url: ``grpc://HOST:PORT`` or ``http://HOST:PORT``.
        timeout: Seconds for one answer.

    All its questions raise :class:`NotAvailableError` and :class:`RefusedError`. After the former over HTTP
    the connection may be broken.
    """

    def __init__(self, url: str, timeout: float) -> None:
        found = ADDRESS.fullmatch(url)
        assert found is not None
        self._module = require(_MODULES[found["scheme"]], extra="server", need="--server")
        self._is_grpc = found["scheme"] == "grpc"
        times = () if self._is_grpc else ("connection_timeout", "network_timeout")
        self._timed = {"client_timeout": timeout} if self._is_grpc else {}
        self._client = self._module.InferenceServerClient(found["host"], **dict.fromkeys(times, timeout))
        self._json = {"as_json": True} if self._is_grpc else {}

    def described(self, model: str) -> Mapping[str, Any]:
        """``inputs`` and ``outputs`` as far as the server says them: either may be missing or empty."""
        return _mapping(_asked(lambda: self._client.get_model_metadata(model, **self._json, **self._timed)))

    def largest_batch(self, model: str) -> int | None:
        """Triton says it; others may not have that call, or have it for other things."""
        found = _mapping(
            _asked(lambda: self._client.get_model_config(model, **self._json, **self._timed), missing={})
        )
        size = int(_mapping(found.get("config", found)).get("max_batch_size", 0))
        return size or None

    def server(self) -> tuple[str, bool]:
        """Name and version, and whether it says that HTTP takes bytes."""
        found = _mapping(
            _asked(lambda: self._client.get_server_metadata(**self._json, **self._timed), missing={})
        )
        name = f"{found.get('name', 'server')} {found.get('version', '')}".strip()
        return name, self._is_grpc or _BYTES_OVER_HTTP in found.get("extensions", ())

    def is_ready(self, model: str | None) -> bool:
        """Whether a model is ready, or, without one, the server is."""
        try:
            if model is None:
                return bool(_asked(lambda: self._client.is_server_ready(**self._timed)))
            return bool(_asked(lambda: self._client.is_model_ready(model, **self._timed)))
        except (NotAvailableError, RefusedError):
            return False

    def infer(self, model: str, given: Input, images: Images, outputs: Sequence[str]) -> dict[str, Images]:
        """Those of the outputs that the server answered; all of them where none is named."""
        form = {} if self._is_grpc else {"binary_data": given.as_bytes}
        sent = self._module.InferInput(given.name, list(images.shape), given.kind)
        sent.set_data_from_numpy(images, **form)
        asked = [self._module.InferRequestedOutput(name, **form) for name in outputs] or None

        def read() -> dict[str, Images]:
            number = uuid.uuid4().hex  # optional in the protocol; models of KServe need one to hand back
            answer = self._client.infer(model, [sent], outputs=asked, request_id=number, **self._timed)
            return self._values(answer, outputs)

        return _asked(read)

    def _values(self, answer: Any, outputs: Sequence[str]) -> dict[str, Images]:
        response = answer.get_response()
        if not self._is_grpc:
            names = [str(each["name"]) for each in response.get("outputs", ())]
            found = {name: answer.as_numpy(name) for name in names if name in outputs or not outputs}
        elif response.raw_output_contents:
            names = [each.name for each in response.outputs]
            found = {name: answer.as_numpy(name) for name in names if name in outputs or not outputs}
        else:  # typed values, which tritonclient does not read
            found = {each.name: _typed(each) for each in response.outputs}
        return {name: np.asarray(values, np.float32) for name, values in found.items()}

    def close(self) -> None:
        """End it."""
        self._client.close()


def _typed(output: Any) -> Images:
    """A tensor of gRPC whose values are a list of numbers."""
    contents = output.contents
    return np.array(contents.fp32_contents or contents.fp64_contents, np.float32).reshape(tuple(output.shape))


def _mapping(found: Any) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        raise RefusedError("its answer is none of the Open Inference Protocol")
    return found


def _asked(question: Callable[[], T], missing: T | None = None) -> T:
    """An answer; ``missing`` where the server has no such call."""
    from tritonclient.utils import InferenceServerException

    try:
        return question()
    except InferenceServerException as error:
        status, said = error.status(), str(error.message() or error)
        if said.startswith(_NOT_JSON):
            said = str(error.debug_details() or said)
        said = _one_line(said)
        if missing is not None and status in _NO_SUCH_CALL:
            return missing
        cut_off = status in _VAGUE and any(word in said.lower() for word in _CUT_OFF)
        if _TOO_LONG not in said and (status in _ONCE_MORE or cut_off):
            raise NotAvailableError(said) from error
        raise RefusedError(said) from error
    except (OSError, EOFError, RuntimeError, http.client.HTTPException) as error:
        # of HTTP: refused, reset, timed out, cut off, no such host
        raise NotAvailableError(_one_line(error) or type(error).__name__) from error
    except (ValueError, LookupError, TypeError) as error:
        raise RefusedError(f"its answer cannot be read: {_one_line(error)}") from error


def _one_line(said: object) -> str:
    return " ".join(str(said).split())[:200]
