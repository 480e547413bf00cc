"""A bundle over HTTP: images in, defended answers out, in batches across requests.

    pip install fastapi uvicorn
    python examples/serve_fastapi.py sad-model
    curl --data-binary @cat.jpg http://127.0.0.1:8000/classify

The body is an image file, nothing around it; no path or address that a client sends is ever opened.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.requests import ClientDisconnect

from sad_runtime import Batching, Classifier, ErrorCode, ImageError, QueueFullError

LIMITS = ("max_batch", "max_wait_ms", "max_waiting", "max_pixels")


def failed(status: int, code: str, message: str) -> Response:
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)


async def body_of(request: Request, most: int) -> bytes:
    """The body, of a longer one than ``most`` the start. It is read to its end, or no client would listen."""
    body = bytearray()
    async for piece in request.stream():
        if len(body) <= most:
            body += piece
    return bytes(body)


class Service:
    """Loads the bundle when the server starts; at its end, all that was accepted is answered."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.batching = Batching(**{name: getattr(given, name) for name in LIMITS})
        self.open, self.seconds = 0, 0.0
        self.responses: Counter[int] = Counter()

    @contextlib.asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        given = self.given
        with Classifier.load(given.bundle, backend=given.backend, batching=self.batching) as self.classifier:
            yield

    async def classify(self, request: Request) -> Response:
        started = time.perf_counter()
        self.open += 1
        try:
            response = await self.answer(request)
        finally:
            self.open -= 1
        self.responses[response.status_code] += 1
        self.seconds += time.perf_counter() - started
        return response

    async def answer(self, request: Request) -> Response:
        given = self.given
        crowded = self.open > 2 * given.max_waiting  # bodies take memory before they are accepted, too
        try:
            async with asyncio.timeout(given.body_seconds):
                body = await body_of(request, 0 if crowded else given.max_bytes)
            if crowded:
                return failed(503, "busy", f"more than {2 * given.max_waiting} requests are open")
            if len(body) > given.max_bytes:
                return failed(413, "too-large", f"more than {given.max_bytes} bytes")
            row = await asyncio.wrap_future(self.classifier.submit(body))
        except (TimeoutError, ClientDisconnect):
            return failed(408, "too-slow", f"the image did not arrive in {given.body_seconds:g} s")
        except QueueFullError as error:
            return failed(503, "busy", error.message)
        except ImageError as error:
            return failed(413 if error.code is ErrorCode.TOO_LARGE else 422, error.code, error.message)
        plain = row.plain.label if row.plain else None
        found = {"label": row.label, "class": row.class_name, "probability": row.probability}
        return JSONResponse(found | {"plain_label": plain})

    async def healthz(self) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(self) -> Response:
        busy = self.classifier.traffic.waiting >= self.given.max_waiting
        return failed(503, "busy", "no room for more images") if busy else PlainTextResponse("ready\n")

    async def metrics(self) -> Response:
        traffic = self.classifier.traffic
        images = ("answered", "failed", "refused", "cancelled")
        lines = ["# TYPE sad_images_total counter"]
        lines += [f'sad_images_total{{result="{name}"}} {getattr(traffic, name)}' for name in images]
        lines += ["# TYPE sad_batches_total counter", f"sad_batches_total {traffic.batches}"]
        lines += ["# TYPE sad_images_waiting gauge", f"sad_images_waiting {traffic.waiting}"]
        lines += ["# TYPE sad_responses_total counter"]
        lines += [f'sad_responses_total{{status="{k}"}} {n}' for k, n in sorted(self.responses.items())]
        lines += ["# TYPE sad_request_seconds summary", f"sad_request_seconds_sum {self.seconds}"]
        lines += [f"sad_request_seconds_count {self.responses.total()}"]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("bundle")
    add("--backend", default="auto")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000, help="0 takes a free one")
    add("--max-batch", type=int, default=16)
    add("--max-wait-ms", type=float, default=5)
    add("--max-waiting", type=int, default=128, help="images accepted and not answered; beyond, 503")
    add("--max-pixels", type=int, default=25_000_000, help="of an image; beyond, 413")
    add("--max-bytes", type=int, default=10 << 20, help="of an image file; beyond, 413")
    add("--body-seconds", type=float, default=10, help="for an image file to arrive; beyond, 408")
    given = parser.parse_args()
    service = Service(given)
    app = FastAPI(lifespan=service.lifespan, openapi_url=None)
    app.post("/classify")(service.classify)
    for page in (service.healthz, service.readyz, service.metrics):
        app.get(f"/{page.__name__}")(page)
    # On SIGTERM: no new connections, what is open is answered, then the classifier is closed.
    uvicorn.run(app, host=given.host, port=given.port, access_log=False, timeout_graceful_shutdown=60)


if __name__ == "__main__":
    main()
