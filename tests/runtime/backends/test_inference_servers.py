"""A bundle's model on KServe's and MLServer's real servers, which say and take less than Triton does."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from sad_runtime import Batching, Classifier
from sad_runtime.backends.server import Server
from sad_runtime.bundle import Bundle
from sad_runtime.errors import UnavailableError, UserError
from tests.support.command_line import exit_code
from tests.support.inference_servers import Kind, Model, serving, why_missing
from tests.support.tiny_bundle import linear_model, two_pass_graph, write_tiny_bundle
from tests.support.triton_server import Address, free_ports

on_servers = pytest.mark.skipif(why_missing() is not None, reason=str(why_missing()))
schemes = pytest.mark.parametrize("scheme", ["grpc", "http"])
SHAPE = (3, 8, 8)
IMAGES = np.random.default_rng(0).random((37, *SHAPE), dtype=np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    return Bundle.open(write_tiny_bundle(folder, linear_model(SHAPE), references=4))


def of(bundle: Bundle, **fields: Any) -> Model:
    described = {"shape": bundle.manifest.preprocessing.shape, **fields}
    return Model("tiny", bundle.root.resolve() / "model.onnx", **described)


@pytest.fixture(scope="module", params=[(kind, said) for kind in Kind for said in (True, False)], ids=str)
def server(
    request: pytest.FixtureRequest, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Address]:
    """One that says what the model takes and answers bytes, and one that says nothing and answers numbers."""
    kind, said = request.param
    model = of(bundle) if said else of(bundle, shape=None, binary=False)
    with serving(kind, model, tmp_path_factory.mktemp("server")) as address:
        yield address


@on_servers
@schemes
def test_answers_are_those_of_the_same_bundle_here(scheme: str, bundle: Bundle, server: Address) -> None:
    outputs = ("logits", "saliency", "plain_logits")
    with (
        Classifier.load(bundle, backend="cpu") as here,
        Classifier.load(bundle, server=Server(f"{scheme}://{getattr(server, scheme)}")) as there,
    ):
        got, want = (each.predict(IMAGES, outputs=outputs) for each in (there, here))
        assert "verified on 4 images" in there.backend_reason
    for name in outputs:
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-4, atol=1e-5)


@on_servers
@schemes
def test_infer_writes_the_rows_that_it_writes_here(
    scheme: str, bundle: Bundle, server: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8)).save(tmp_path / f"{i:02}.png")
    words = ("infer", str(tmp_path), "--bundle", str(bundle.root), "--batch-size", "8")
    remote = ("--server", f"{scheme}://{getattr(server, scheme)}")
    rows = []
    for name, where in (("there", remote), ("here", ("--backend", "cpu"))):
        out = tmp_path / f"{name}.jsonl"
        assert exit_code(monkeypatch, *words, *where, "--out", str(out)) == 0
        read = map(json.loads, out.read_text().splitlines())
        rows.append(sorted(read, key=lambda row: row["path"]))
    assert len(rows[0]) == 20
    for there, here in zip(*rows, strict=True):
        assert (there["path"], there["label"]) == (here["path"], here["label"])
        assert there["probability"] == pytest.approx(here["probability"], rel=1e-4)


@on_servers
@pytest.mark.parametrize("kind", list(Kind))
def test_what_is_larger_than_a_server_takes_goes_in_smaller_requests(kind: Kind, tmp_path: Path) -> None:
    """Over gRPC, KServe takes 8 MiB and MLServer 4, unless told; 16 images of 224 × 224 are 9.6 MB."""
    shape = (3, 224, 224)
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "tiny", linear_model(shape), references=4))
    images = np.random.default_rng(0).random((16, *shape), dtype=np.float32)
    with (
        serving(kind, of(bundle), tmp_path / "server") as address,
        Classifier.load(bundle, backend="cpu") as here,
        Classifier.load(bundle, server=Server(f"grpc://{address.grpc}")) as there,
    ):
        got, want = (each.predict(images, outputs=("logits",)).logits for each in (there, here))
        assert there.backend.max_batch in (4, 8)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@on_servers
@schemes
def test_a_server_that_comes_back_without_its_model_at_first_costs_no_row(
    scheme: str, bundle: Bundle, tmp_path: Path
) -> None:
    """MLServer listens before it has loaded: until then there is no such model."""
    ports, answers, ended = free_ports(2), [], threading.Event()
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(serving(Kind.MLSERVER, of(bundle), tmp_path / "first", ports=ports))
        server = Server(f"{scheme}://{getattr(address, scheme)}", patience=120)
        there = stack.enter_context(Classifier.load(bundle, server=server))
        want = there.predict(IMAGES).logits

        def ask() -> None:
            while not ended.is_set():
                answers.append(there.predict(IMAGES).logits)

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.3)
        address.stop()
        before = len(answers)
        slow = of(bundle, loading=5)
        with serving(Kind.MLSERVER, slow, tmp_path / "second", ports=ports):
            while len(answers) < before + 3:
                assert asking.is_alive()
                time.sleep(0.05)
            ended.set()
            asking.join(120)
    assert before > 0
    for logits in answers:
        np.testing.assert_allclose(logits, want, rtol=1e-5)


@on_servers
@schemes
@pytest.mark.parametrize("kind", list(Kind))
def test_what_a_server_has_not_is_refused_at_once(
    kind: Kind, scheme: str, bundle: Bundle, tmp_path: Path
) -> None:
    other = write_tiny_bundle(tmp_path / "other", linear_model((3, 16, 16)), references=4)
    with serving(kind, of(Bundle.open(other)), tmp_path / "server") as address:
        url = f"{scheme}://{getattr(address, scheme)}"
        started = time.monotonic()
        with pytest.raises(UserError, match=f"{url} refuses absent"):
            Classifier.load(bundle, server=Server(url, "absent"))
        with pytest.raises(UserError, match=r"takes images of \(3, 16, 16\), the bundle says \(3, 8, 8\)"):
            Classifier.load(bundle, server=Server(url))
        assert time.monotonic() - started < 4  # it is not asked again


@on_servers
def test_a_server_that_goes_away_is_one_error_of_all_that_is_submitted(
    bundle: Bundle, tmp_path: Path
) -> None:
    """Its patience passes once a batch, not once an image."""
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(serving(Kind.MLSERVER, of(bundle), tmp_path / "server"))
        options = Batching(max_batch=16, max_wait_ms=2000)
        server = Server(f"grpc://{address.grpc}", patience=1)
        there = stack.enter_context(Classifier.load(bundle, server=server, batching=options))
        assert there.submit(IMAGES[0]).result().label >= 0
        address.stop()
        began = time.monotonic()
        futures = [there.submit(image) for image in IMAGES[:16]]
        for future in futures:
            with pytest.raises(UnavailableError, match="has not answered for 1 s"):
                future.result(60)
        assert time.monotonic() - began < 10


@on_servers
def test_answers_of_another_shape_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    graph = two_pass_graph(linear_model(SHAPE))
    (deep,) = (each for each in graph.graph.initializer if each.name == "deep")
    deep.CopyFrom(numpy_helper.from_array(np.array([0, 8, 8, 3], np.int64), "deep"))
    del graph.graph.output[1].type.tensor_type.shape.dim[:]
    onnx.save(graph, tmp_path / "model.onnx")
    model = Model("tiny", tmp_path / "model.onnx", None)
    with (
        serving(Kind.KSERVE, model, tmp_path / "server") as address,
        pytest.raises(UserError, match=r"answered saliency of \(4, 8, 8, 3\) to 4 images"),
    ):
        Classifier.load(bundle, server=Server(f"grpc://{address.grpc}"))


@contextlib.contextmanager
def listening(handler: type[socketserver.BaseRequestHandler]) -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class Pages(http.server.SimpleHTTPRequestHandler):
    """Another service: a page for every address."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>welcome</html>")

    def log_message(self, *_: object) -> None:
        pass


class Cut(socketserver.BaseRequestHandler):
    """Hangs up in the middle of its answer."""

    def handle(self) -> None:
        self.request.recv(10_000)
        self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        self.request.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("handler", "message"), [(Pages, "its answer cannot be read"), (Cut, "has not answered for 0.5 s")]
)
def test_what_is_no_server_of_the_protocol_is_one_line(
    handler: type[socketserver.BaseRequestHandler], message: str, bundle: Bundle
) -> None:
    with listening(handler) as host, pytest.raises(UserError, match=message):
        Classifier.load(bundle, server=Server(f"http://{host}", patience=0.5))
