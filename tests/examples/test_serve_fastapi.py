"""examples/serve_fastapi.py, a real server on loopback: right answers, hostile images, overload, its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sad_runtime import Classifier, ErrorCode
from tests.support.image_zoo import bad_files, encoded
from tests.support.tiny_bundle import linear_model, write_tiny_bundle

pytest.importorskip("fastapi", reason="the example needs fastapi")
pytest.importorskip("uvicorn", reason="the example needs uvicorn")

SERVE = Path(__file__).parents[2] / "examples" / "serve_fastapi.py"
FILES = [
    encoded("PNG", np.random.default_rng(i).integers(0, 256, (9, 12, 3), dtype=np.uint8)) for i in range(12)
]


class Server:
    """The example as a process."""

    def __init__(self, bundle: Path, log: Path, *options: object) -> None:
        command = [sys.executable, SERVE, bundle, "--port", 0, "--backend", "cpu", *options]
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen([str(part) for part in command], stderr=file)
        self.port = self._port()

    def _port(self) -> int:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if found := re.search(r"running on http://127.0.0.1:(\d+)", self.said()):
                return int(found[1])
            assert self.process.poll() is None, self.said()
            time.sleep(0.05)
        raise AssertionError(self.said())

    def said(self) -> str:
        return self._log.read_text()

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            response = connection.getresponse()
            data = response.read()
            is_json = response.getheader("content-type") == "application/json"
            return response.status, json.loads(data) if is_json else data.decode(), response.headers

    def classify(self, body: Any) -> tuple[int, Any]:
        return self.ask("POST", "/classify", body)[:2]

    def metrics(self) -> dict[str, float]:
        status, text, _ = self.ask("GET", "/metrics")
        assert status == 200
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    def end(self) -> None:
        """End it gently, and see that it did: uvicorn then ends of the signal as if it had not caught it."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) in (0, -signal.SIGTERM)
        assert "Application shutdown complete" in self.said()
        assert "Traceback" not in self.said()


@contextlib.contextmanager
def serving(bundle: Path, tmp_path: Path, *options: object) -> Iterator[Server]:
    server = Server(bundle, tmp_path / "server.log", *options)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "sad-model", linear_model())


def test_answers_are_those_of_infer_and_hostile_images_one_error_each(bundle: Path, tmp_path: Path) -> None:
    bad = bad_files()
    with Classifier.load(bundle, backend="cpu") as classifier:
        rows = list(classifier.stream(FILES))
    with serving(bundle, tmp_path) as server:
        assert server.ask("GET", "/healthz")[0] == 200
        assert server.ask("GET", "/readyz")[0] == 200
        with ThreadPoolExecutor(8) as clients:
            answers = clients.map(server.classify, FILES)
            refusals = clients.map(server.classify, [file.data for file in bad.values()])
            for row, (status, answer) in zip(rows, answers, strict=True):
                assert status == 200
                assert (answer["label"], answer["class"]) == (row.label, row.class_name)
                assert answer["probability"] == pytest.approx(row.probability, abs=1e-5)
                assert row.plain is not None
                assert answer["plain_label"] == row.plain.label
            for (name, file), (status, answer) in zip(bad.items(), refusals, strict=True):
                assert status == (413 if file.code is ErrorCode.TOO_LARGE else 422), name
                assert answer["error"]["code"] == file.code
        assert server.classify(str(bundle / "manifest.json").encode())[1]["error"]["code"] == "not-an-image"
        metrics = server.metrics()
        assert metrics['sad_images_total{result="answered"}'] == len(FILES)
        assert metrics['sad_images_total{result="failed"}'] == len(bad) + 1
        assert metrics["sad_request_seconds_count"] == len(FILES) + len(bad) + 1
        server.end()


def test_requests_too_large_too_slow_or_cut_off_end_alone(bundle: Path, tmp_path: Path) -> None:
    options = ("--max-bytes", 2000, "--max-pixels", 108, "--body-seconds", 0.5)
    with serving(bundle, tmp_path, *options) as server:
        assert server.classify(bytes(2001))[0] == 413
        assert server.classify(bytes(20 << 20))[0] == 413
        assert server.classify(iter([bytes(1500)] * 2))[0] == 413  # chunked, of no stated length
        assert server.classify(bytes(2000))[0] == 422
        assert server.classify(FILES[0])[0] == 200
        assert server.classify(encoded("PNG", np.zeros((10, 12, 3), np.uint8)))[0] == 413
        assert server.ask("GET", "/classify")[0] == 405
        head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n\x89PNG"
        with socket.create_connection(("127.0.0.1", server.port), 30) as slow:
            slow.sendall(head)
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port), 30) as cut:
                cut.sendall(head)
        assert server.classify(FILES[0])[0] == 200
        server.end()


def test_overload_is_503_with_a_time_and_all_that_was_accepted_is_answered(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "large", linear_model((3, 512, 512), 8))
    picture = encoded("PNG", np.zeros((512, 512, 3), np.uint8))
    with serving(bundle, tmp_path, "--max-waiting", 4, "--max-batch", 2) as server:
        with ThreadPoolExecutor(40) as clients:
            asked = list(clients.map(lambda _: server.ask("POST", "/classify", picture), range(120)))
        statuses = Counter(status for status, _, _ in asked)
        assert set(statuses) == {200, 503}, statuses
        assert statuses[200] >= 4
        for status, answer, headers in asked:
            assert (headers["retry-after"] is not None) == (status == 503)
            assert status == 200 or answer["error"]["code"] == "busy"
        metrics = server.metrics()
        assert metrics['sad_images_total{result="answered"}'] == statuses[200]
        assert metrics["sad_images_waiting"] == 0
        assert metrics['sad_responses_total{status="503"}'] == statuses[503]
        assert server.classify(picture)[0] == 200
        server.end()


def test_the_end_answers_what_is_open(bundle: Path, tmp_path: Path) -> None:
    options = ("--max-wait-ms", 4000, "--max-waiting", len(FILES))
    with serving(bundle, tmp_path, *options) as server, ThreadPoolExecutor(len(FILES)) as clients:
        asked = [clients.submit(server.classify, file) for file in FILES]
        while server.metrics()["sad_images_waiting"] < len(FILES):
            assert not any(one.done() for one in asked)
        assert server.ask("GET", "/readyz")[0] == 503
        server.end()
        assert [one.result()[0] for one in asked] == [200] * len(FILES)


def test_nothing_that_a_client_names_is_opened(bundle: Path, tmp_path: Path) -> None:
    """The named file is an image that could be answered: opened, it would be 200."""
    picture = tmp_path / "picture.png"
    picture.write_bytes(FILES[0])
    (tmp_path / "list.txt").write_text(f"{picture}\n")
    form = f'--x\r\nContent-Disposition: form-data; name="image"; filename="{picture}"\r\n\r\n\r\n--x--\r\n'
    with serving(bundle, tmp_path) as server:
        for body in (
            picture,
            picture.as_uri(),
            f"@{tmp_path}/list.txt",
            json.dumps({"path": str(picture)}),
            form,
        ):
            status, answer = server.classify(str(body).encode())
            assert (status, answer["error"]["code"]) == (422, "not-an-image"), body
        status, answer, _ = server.ask("POST", f"/classify?path={picture}&image={picture}", b"")
        assert (status, answer["error"]["code"]) == (422, "empty")
        for path in (
            f"/{picture}",
            f"/../..{picture}",
            "/classify/../manifest.json",
            "/..%2f..%2fetc/passwd",
        ):
            assert server.ask("GET", path)[0] == 404, path
        assert server.classify(picture.read_bytes())[0] == 200
        server.end()


def test_bodies_that_drip_or_never_end_are_408_and_take_no_memory(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path, "--max-bytes", 200_000, "--body-seconds", 1.5) as server:
        assert server.classify(FILES[0])[0] == 200
        before = resident(server)
        drip = b"Content-Length: 100000\r\n\r\n", b"\x89", 0.05
        flood = b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%s\r\n" % (1 << 16, bytes(1 << 16)), 0
        for header, piece, pause in (drip, flood):
            with socket.create_connection(("127.0.0.1", server.port), 30) as client:
                client.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\n" + header)
                began, answer = time.monotonic(), b""
                while not answer and time.monotonic() - began < 20:
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        client.sendall(piece)
                    time.sleep(pause)
                    client.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        answer = client.recv(100)
                    client.setblocking(True)
                assert answer.startswith(b"HTTP/1.1 408"), answer
                assert time.monotonic() - began > 1
        assert resident(server) - before < 64 << 20
        assert server.classify(FILES[0])[0] == 200
        server.end()


def resident(server: Server) -> int:
    """Bytes of memory."""
    pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def test_what_is_no_request_is_refused_alone(bundle: Path, tmp_path: Path) -> None:
    post = b"POST /classify HTTP/1.1\r\nHost: x\r\n"
    with serving(bundle, tmp_path) as server:
        for request in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # TLS
            post + b"Content-Length: -5\r\n\r\n",
            post + b"Content-Length: ten\r\n\r\n",
            post + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
            post + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        ):
            with socket.create_connection(("127.0.0.1", server.port), 30) as client:
                client.sendall(request)
                assert client.recv(1000).startswith((b"HTTP/1.1 400", b"HTTP/1.1 408")), request
        assert server.classify(FILES[0])[0] == 200
        server.end()


def test_more_requests_than_may_be_open_are_503_before_their_bodies(bundle: Path, tmp_path: Path) -> None:
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n\x89PNG"
    with serving(bundle, tmp_path, "--max-waiting", 3, "--body-seconds", 60) as server:
        with contextlib.ExitStack() as open_ones:
            for _ in range(6):
                client = open_ones.enter_context(socket.create_connection(("127.0.0.1", server.port), 30))
                client.sendall(head)
            until = time.monotonic() + 10
            while (status := server.classify(FILES[0])[0]) == 200 and time.monotonic() < until:
                time.sleep(0.05)  # a server reads connections in its own time
            assert status == 503
        while server.classify(FILES[0])[0] == 503:
            assert time.monotonic() < until + 10
        server.end()


def test_a_client_that_hangs_up_leaves_no_image_behind(bundle: Path, tmp_path: Path) -> None:
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(FILES[0])}\r\n\r\n".encode()
    with serving(bundle, tmp_path, "--max-waiting", 4) as server:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port), 30) as client:
                client.sendall(head + FILES[0])
            while server.metrics()["sad_images_waiting"] >= 4:
                time.sleep(0.01)
        until = time.monotonic() + 20
        while (metrics := server.metrics())["sad_images_waiting"]:
            assert time.monotonic() < until
        assert sum(n for name, n in metrics.items() if name.startswith("sad_images_total")) == 20
        assert server.classify(FILES[0])[0] == 200
        server.end()
