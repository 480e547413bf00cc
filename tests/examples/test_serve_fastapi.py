"""examples/serve_fastapi.py, a real server on loopback: right answers, hostile images, overload, its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
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
