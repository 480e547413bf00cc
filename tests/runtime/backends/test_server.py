"""A bundle's model on a real Triton: the same rows, a server that goes away and comes back, and refusals."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sad_deploy.triton import TritonRequest, write_repository
from sad_runtime import Classifier
from sad_runtime.backends.server import Server
from sad_runtime.bundle import Bundle
from sad_runtime.choices import TritonInput
from sad_runtime.errors import BackendError, UserError
from tests.support.command_line import exit_code
from tests.support.tiny_bundle import linear_model, write_tiny_bundle
from tests.support.triton_server import Address, free_ports, serving, swapped, why_missing

on_triton = pytest.mark.skipif(why_missing() is not None, reason=str(why_missing()))
IMAGES = np.random.default_rng(0).random((37, 3, 8, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    return Bundle.open(write_tiny_bundle(folder, linear_model(), references=4))


@pytest.fixture(scope="module")
def folder(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("triton")
    other = Bundle.open(write_tiny_bundle(work / "other", linear_model(seed=9), references=4))
    larger = Bundle.open(write_tiny_bundle(work / "larger", linear_model((3, 16, 16)), references=4))
    write_repository(bundle, TritonRequest(work / "written"))
    write_repository(bundle, TritonRequest(work / "written", name="bytes", input=TritonInput.UINT8))
    write_repository(other, TritonRequest(work / "written"))
    write_repository(larger, TritonRequest(work / "written"))
    swapped(work / "written", work / "served")
    return work


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Address]:
    with serving(folder / "served", folder) as address:
        yield address


def photos(folder: Path, count: int = 40) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(1)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8)).save(folder / f"{i:02}.png")
    (folder / "bad.png").write_bytes(b"no image")
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: row["path"])


@on_triton
@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("model", [None, "bytes"])
def test_answers_are_those_of_the_same_bundle_here(
    scheme: str, model: str | None, bundle: Bundle, server: Address
) -> None:
    images = IMAGES if model is None else np.rint(IMAGES * 255).astype(np.float32) / np.float32(255)
    url = f"{scheme}://{getattr(server, scheme)}"
    with (
        Classifier.load(bundle, backend="cpu") as here,
        Classifier.load(bundle, server=Server(url, model)) as there,
    ):
        got, want = (
            each.predict(images, outputs=("logits", "saliency", "plain_logits")) for each in (there, here)
        )
        assert "triton" in there.backend_reason
        assert "verified on 4 images" in there.backend_reason
        assert there.backend.max_batch == 16
    for name in ("logits", "saliency", "plain_logits"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-4, atol=1e-5)


@on_triton
def test_infer_writes_the_rows_that_it_writes_here(
    bundle: Bundle, server: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = photos(tmp_path / "photos")
    words = ("infer", str(source), "--bundle", str(bundle.root), "--batch-size", "16")
    remote = ("--server", f"grpc://{server.grpc}")
    assert exit_code(monkeypatch, *words, *remote, "--out", str(tmp_path / "there.jsonl")) == 3
    assert exit_code(monkeypatch, *words, "--backend", "cpu", "--out", str(tmp_path / "here.jsonl")) == 3
    there, here = rows(tmp_path / "there.jsonl"), rows(tmp_path / "here.jsonl")
    assert len(there) == 41
    for got, want in zip(there, here, strict=True):
        assert got["path"] == want["path"] and got.get("label") == want.get("label")
        assert got.get("error") == want.get("error")
        assert got.get("probability", 0) == pytest.approx(want.get("probability", 0), rel=1e-4)


@on_triton
def test_a_server_that_comes_back_in_mid_run_costs_no_row(
    bundle: Bundle, folder: Path, tmp_path: Path
) -> None:
    """Ended while it is asked, started again on the same port."""
    work = tmp_path / "work"
    work.mkdir()
    ports = free_ports(2)
    with serving(folder / "served", work, ports=ports) as address:
        server = Server(f"grpc://{address.grpc}", patience=120)
        with Classifier.load(bundle, server=server) as there:
            want = there.predict(IMAGES).logits
            down = threading.Event()
            answers: list[np.ndarray[Any, Any]] = []

            def ask() -> None:
                while not down.is_set() or len(answers) < 3:
                    answers.append(there.predict(IMAGES).logits)

            asking = threading.Thread(target=ask)
            asking.start()
            address.stop()
            time.sleep(1)
            answers.clear()
            with serving(folder / "served", work, ports=ports):
                down.set()
                asking.join(120)
                assert not asking.is_alive()
    assert len(answers) >= 3
    for logits in answers:
        np.testing.assert_allclose(logits, want, rtol=1e-5)


@on_triton
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("absent", "refuses absent: .*unknown model"),
        ("other", "does not compute what .*tiny says: label agreement"),
        ("larger", r"takes images of \(3, 16, 16\), the bundle says \(3, 8, 8\)"),
    ],
)
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_another_model_is_refused(
    scheme: str, model: str, message: str, bundle: Bundle, server: Address
) -> None:
    url = f"{scheme}://{getattr(server, scheme)}"
    started = time.monotonic()
    with pytest.raises(UserError, match=message):
        Classifier.load(bundle, server=Server(url, model))
    assert time.monotonic() - started < 30  # it is not asked again


@on_triton
def test_another_answer_is_taken_when_told(bundle: Bundle, server: Address) -> None:
    said: list[str] = []
    at = Server(f"grpc://{server.grpc}", "other")
    with Classifier.load(bundle, server=at, unverified=True, notice=said.append) as there:
        assert "unverified" in there.backend_reason
    assert "does not compute" in said[0]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_is_not_there_is_one_line(scheme: str, bundle: Bundle) -> None:
    (port,) = free_ports(1)
    with pytest.raises(BackendError, match=f"{scheme}://127.0.0.1:{port} has not answered for 0.5 s"):
        Classifier.load(bundle, server=Server(f"{scheme}://127.0.0.1:{port}", patience=0.5))


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_says_nothing_is_given_up(scheme: str, bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BackendError, match="has not answered for 1 s"):
            Classifier.load(bundle, server=Server(url, timeout=0.5, patience=1))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--server", "localhost:8001"), "'localhost:8001' is no address of a server"),
        (("--server", "ftp://localhost:8001"), "is no address"),
        (("--server", "grpc://localhost:8001", "--server-timeout", "0"), "positive numbers of seconds"),
        (("--server", "grpc://localhost:8001", "--backend", "cpu"), "a server runs the model, not cpu here"),
        (("--server-model", "x"), "--server-model: only with --server"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    words: tuple[str, ...],
    message: str,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle.root, "sad-model")
    assert exit_code(monkeypatch, "infer", str(photos(tmp_path / "photos", 1)), *words) == 2
    assert message in capsys.readouterr().err
