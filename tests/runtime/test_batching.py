"""Classifier.submit and threads: every image accepted is answered once, rightly, whatever the others do."""

from __future__ import annotations

import io
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sad_runtime import Batching, Classifier, ErrorCode, ImageError, QueueFullError, Row, UserError
from sad_runtime.errors import BackendError
from tests.support.image_zoo import bad_files, encoded
from tests.support.tiny_bundle import LinearModel, linear_model, two_pass_graph, write_tiny_bundle

PICTURES = np.random.default_rng(1).integers(0, 256, (40, 9, 12, 3), dtype=np.uint8)
FILES = [encoded("PNG", picture) for picture in PICTURES]
LONG = 60_000.0  # milliseconds: a batch begins only when it is full


class Held:
    """A file that gives its bytes once it is let go, as a slow client's upload does."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        self.asked, self.gate = threading.Event(), threading.Event()

    def read(self, size: int, /) -> bytes:
        self.asked.set()
        assert self.gate.wait(30)
        return self._file.read(size)


def loaded(folder: Path, backend: str = "cpu", **batching: object) -> Classifier:
    return Classifier.load(folder, backend=backend, batching=Batching(**batching))  # type: ignore[arg-type]


def of_batcher() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(("batches", "decode"))]


@pytest.fixture
def labels(bundle_folder: Path) -> list[int]:
    with Classifier.load(bundle_folder, backend="cpu") as classifier:
        found: list[int] = classifier.predict(FILES).labels.tolist()
    assert len(set(found)) > 1
    return found


def test_images_of_many_threads_are_answered_in_batches(bundle_folder: Path, labels: list[int]) -> None:
    numbers = [i % len(FILES) for i in range(400)]
    with loaded(bundle_folder, max_batch=16, max_wait_ms=20, max_waiting=500) as classifier:
        with ThreadPoolExecutor(32) as clients:
            futures = list(clients.map(lambda i: classifier.submit(FILES[i]), numbers))
        rows = [future.result(30) for future in futures]
        traffic = classifier.traffic
    assert [row.label for row in rows] == [labels[i] for i in numbers]
    assert all(row.plain is not None and row.probability is not None for row in rows)
    assert (traffic.accepted, traffic.answered, traffic.failed, traffic.waiting) == (400, 400, 0, 0)
    assert 400 / 16 <= traffic.batches < 200
    assert not of_batcher()


def test_a_full_batch_does_not_wait_and_a_lone_image_no_longer_than_told(bundle_folder: Path) -> None:
    with loaded(bundle_folder, max_batch=8, max_wait_ms=LONG) as classifier:
        futures = [classifier.submit(file) for file in FILES[:8]]
        assert not wait(futures, 30).not_done
        assert classifier.traffic.batches == 1
    with loaded(bundle_folder, max_batch=8, max_wait_ms=80) as classifier:
        started = time.monotonic()
        classifier.submit(FILES[0]).result(30)
        assert time.monotonic() - started >= 0.08


def test_a_row_is_that_of_stream(bundle_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(FILES[0])
    with loaded(bundle_folder, top_k=2, logits=True) as classifier:
        (expected,) = classifier.stream([path], top_k=2, logits=True)
        assert classifier.submit(path).result(30) == expected
        named = classifier.submit(FILES[0]).result(30)
        assert named == expected._replace(path="images[1]", size=None, mtime_ns=None)


def test_hostile_images_fail_alone_and_the_rest_of_their_batch_is_answered(
    bundle_folder: Path, labels: list[int]
) -> None:
    bad = list(bad_files().values())
    jobs: list[tuple[bytes, int | ErrorCode]] = [(file.data, file.code) for file in bad]
    jobs += [(FILES[i], labels[i]) for i in range(len(FILES))]
    random.Random(0).shuffle(jobs)
    with loaded(bundle_folder, max_batch=8) as classifier:
        with ThreadPoolExecutor(8) as clients:
            futures = list(clients.map(lambda job: classifier.submit(job[0]), jobs))
        for future, (_, expected) in zip(futures, jobs, strict=True):
            if isinstance(expected, ErrorCode):
                error = future.exception(60)
                assert isinstance(error, ImageError)
                assert error.code is expected
            else:
                assert future.result(60).label == expected
        assert classifier.traffic.failed == len(bad)


def test_an_answer_that_is_not_finite_is_the_error_of_its_image_alone(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "nan", linear_model(), nan_on_black=True)
    black = encoded("PNG", np.zeros((9, 9, 3), np.uint8))
    with loaded(folder, max_batch=3, max_wait_ms=LONG) as classifier:
        futures = [classifier.submit(image) for image in (FILES[0], black, FILES[1])]
        error = futures[1].exception(30)
        assert isinstance(error, ImageError)
        assert error.code is ErrorCode.NON_FINITE
        assert futures[0].result(30).label is not None
        assert futures[2].result(30).label is not None


def test_pixels_beyond_the_limit_are_refused(bundle_folder: Path) -> None:
    with loaded(bundle_folder, max_pixels=9 * 12) as classifier:
        classifier.submit(FILES[0]).result(30)
        with pytest.raises(ImageError, match="more than 108 pixels"):
            classifier.submit(encoded("PNG", np.zeros((10, 12, 3), np.uint8))).result(30)


def test_a_full_queue_is_told_at_once_or_waited_for(bundle_folder: Path) -> None:
    with loaded(bundle_folder, max_waiting=2, workers=2) as classifier:
        held = [Held(FILES[0]), Held(FILES[1])]
        futures = [classifier.submit(file) for file in held]
        started = time.monotonic()
        with pytest.raises(QueueFullError, match="2 images are waiting already"):
            classifier.submit(FILES[2])
        assert time.monotonic() - started < 5
        with pytest.raises(QueueFullError):
            classifier.submit(FILES[2], block=True, timeout=0.05)
        with ThreadPoolExecutor(1) as client:
            patient = client.submit(lambda: classifier.submit(FILES[2], block=True).result(30))
            time.sleep(0.05)
            assert not patient.done()
            held[0].gate.set()
            assert patient.result(30).label is not None
        held[1].gate.set()
        assert not wait(futures, 30).not_done
        assert classifier.traffic.refused == 2


def test_who_has_an_answer_finds_room_for_the_next_image(bundle_folder: Path) -> None:
    with loaded(bundle_folder, max_waiting=1, max_wait_ms=0) as classifier:
        for file in FILES:
            classifier.submit(file).result(30)
        for _ in range(20):
            with pytest.raises(ImageError):
                classifier.submit(b"text").result(30)


def test_a_cancelled_image_leaves_its_batch_and_its_place(bundle_folder: Path, labels: list[int]) -> None:
    with loaded(bundle_folder, max_batch=4, max_wait_ms=LONG, max_waiting=4, workers=1) as classifier:
        first = classifier.submit(FILES[0])
        held = Held(FILES[1])
        second = classifier.submit(held)
        assert held.asked.wait(30)  # so the first is decoded and waits, and the third will not be
        third = classifier.submit(FILES[2])
        assert first.cancel()
        assert third.cancel()
        held.gate.set()
        rest = [classifier.submit(FILES[i], block=True) for i in (3, 4)]
        assert [f.result(30).label for f in (second, *rest)] == [labels[i] for i in (1, 3, 4)]
        with pytest.raises(CancelledError):
            first.result()
        traffic = classifier.traffic
        assert (traffic.cancelled, traffic.answered, traffic.waiting) == (2, 3, 0)
        assert not second.cancel()


def test_cancelling_at_random_loses_nobody_else(bundle_folder: Path, labels: list[int]) -> None:
    chance = random.Random(0)
    numbers = [chance.randrange(len(FILES)) for _ in range(300)]
    with loaded(bundle_folder, max_batch=4, max_wait_ms=1, max_waiting=8) as classifier:

        def ask(i: int) -> tuple[Future[Row], bool]:
            future = classifier.submit(FILES[i], block=True)
            return future, i % 3 == 0 and future.cancel()

        with ThreadPoolExecutor(8) as clients:
            asked = list(clients.map(ask, numbers))
        for i, (future, cancelled) in zip(numbers, asked, strict=True):
            assert cancelled or future.result(30).label == labels[i]
    traffic = classifier.traffic
    assert traffic.cancelled == sum(cancelled for _, cancelled in asked)
    assert traffic.answered == 300 - traffic.cancelled
    assert traffic.waiting == 0


def test_closing_under_load_answers_all_that_was_accepted(bundle_folder: Path, labels: list[int]) -> None:
    classifier = loaded(bundle_folder, max_batch=8, max_wait_ms=LONG, max_waiting=64)
    accepted: list[tuple[int, Future[Row]]] = []
    enough = threading.Event()

    def ask(seed: int) -> str:
        chance = random.Random(seed)
        while True:
            i = chance.randrange(len(FILES))
            try:
                accepted.append((i, classifier.submit(FILES[i], block=seed % 2 == 0)))
            except QueueFullError:
                time.sleep(0.001)
            except UserError as error:
                return error.message
            if len(accepted) > 200:
                enough.set()

    with ThreadPoolExecutor(8) as clients:
        ends = [clients.submit(ask, seed) for seed in range(8)]
        assert enough.wait(60)
        classifier.close()
        assert {end.result(30) for end in ends} == {"the classifier is closed"}
    assert all(future.done() for _, future in accepted)
    assert [future.result().label for _, future in accepted] == [labels[i] for i, _ in accepted]
    assert classifier.traffic.answered == len(accepted)
    assert not of_batcher()
    classifier.close()


def test_closing_waits_for_no_batch_to_fill(bundle_folder: Path, labels: list[int]) -> None:
    classifier = loaded(bundle_folder, max_batch=8, max_wait_ms=LONG)
    futures = [classifier.submit(file) for file in FILES[:3]]
    started = time.monotonic()
    classifier.close()
    assert time.monotonic() - started < 30
    assert [future.result(0).label for future in futures] == labels[:3]


@pytest.mark.parametrize("last", [FILES[0], b"text"])
def test_closing_waits_for_an_image_that_still_arrives_good_or_bad(bundle_folder: Path, last: bytes) -> None:
    classifier = loaded(bundle_folder, max_wait_ms=0)
    held = Held(last)
    future = classifier.submit(held)
    with ThreadPoolExecutor(1) as other:
        closing = other.submit(classifier.close)
        assert held.asked.wait(30)
        time.sleep(0.1)  # by now the model's thread waits for it
        assert not closing.done()
        held.gate.set()
        assert closing.result(30) is None
    assert future.done()
    assert not of_batcher()


def test_a_classifier_closed_before_its_first_image_starts_no_thread(bundle_folder: Path) -> None:
    classifier = loaded(bundle_folder)
    classifier.close()
    with pytest.raises(UserError, match="closed"):
        classifier.submit(FILES[0])
    assert classifier.traffic.accepted == 0
    assert not of_batcher()


@pytest.mark.parametrize("image", [FILES[0], b"text"])
def test_a_callback_that_closes_is_refused_and_locks_nothing_up(bundle_folder: Path, image: bytes) -> None:
    classifier = loaded(bundle_folder, max_wait_ms=0, workers=1)
    refused: Future[str] = Future()

    def close(_: Future[Row]) -> None:
        with pytest.raises(UserError) as caught:
            classifier.close()
        refused.set_result(caught.value.message)

    held = Held(image)  # so that the callback is there before the answer
    future = classifier.submit(held)
    future.add_done_callback(close)
    last = classifier.submit(FILES[1])
    held.gate.set()
    assert "callback cannot close" in refused.result(30)
    classifier.close()
    assert last.result(0).label is not None


def only_alone(model: LinearModel) -> onnx.ModelProto:
    """A graph that fails on more than one image: it flattens a batch to one row."""
    graph = two_pass_graph(model)
    (flat,) = (tensor for tensor in graph.graph.initializer if tensor.name == "flat")
    flat.CopyFrom(numpy_helper.from_array(np.array([1, -1], np.int64), "flat"))
    return graph


def test_where_a_batch_fails_its_images_are_run_alone(tmp_path: Path, labels: list[int]) -> None:
    folder = write_tiny_bundle(tmp_path / "alone", linear_model(), graph=only_alone(linear_model()))
    with loaded(folder, max_batch=4, max_wait_ms=LONG) as classifier:
        with pytest.raises(BackendError):
            classifier.predict(FILES[:4])
        futures = [classifier.submit(file) for file in FILES[:4]]
        assert [future.result(30).label for future in futures] == labels[:4]
        assert classifier.traffic.batches == 5


def test_a_backend_that_is_gone_is_everybodys_error_and_ends_no_thread(bundle_folder: Path) -> None:
    with loaded(bundle_folder, max_batch=2, max_wait_ms=LONG) as classifier:
        classifier.backend.close()
        for _ in range(2):
            futures = [classifier.submit(file) for file in FILES[:2]]
            for future in futures:
                with pytest.raises(RuntimeError, match="the backend is closed"):
                    future.result(30)


def test_what_is_no_image_is_refused_before_it_is_accepted(bundle_folder: Path) -> None:
    with loaded(bundle_folder) as classifier:
        with pytest.raises(UserError, match="int is no image"):
            classifier.submit(7)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="not one image"):
            classifier.submit(PICTURES)
        with pytest.raises(UserError, match="opened as text"):
            classifier.submit(io.StringIO("x")).result(30)  # type: ignore[arg-type]
        assert classifier.traffic.accepted == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"max_waiting": -1}, "max_waiting must be at least 1"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms must be a time"),
        ({"max_wait_ms": -1.0}, "max_wait_ms must be a time"),
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Batching(**wrong)  # type: ignore[arg-type]


@pytest.fixture(params=["cpu", "openvino"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="the openvino backend needs OpenVINO")
    yield request.param


def test_predict_stream_and_submit_may_be_used_at_once(
    backend: str, bundle_folder: Path, model: LinearModel
) -> None:
    """OpenVINO's requests are shared: without the lock, answers are mixed up or refused as busy."""
    batches = np.random.default_rng(2).random((24, 5, 3, 8, 8), dtype=np.float32)
    expected = [model.two_pass(batch)[0] for batch in batches]
    with loaded(bundle_folder, backend, max_batch=4) as classifier:
        of_file = [row.label for row in classifier.stream(FILES)]
        stop = threading.Event()

        def keep_busy() -> bool:
            right = True
            while not stop.is_set():
                right &= [row.label for row in classifier.stream(FILES, batch_size=7)] == of_file
                futures = [classifier.submit(file) for file in FILES]
                right &= [future.result(30).label for future in futures] == of_file
            return right

        with ThreadPoolExecutor(9) as threads:
            busy = threads.submit(keep_busy)
            for _ in range(5):
                found = list(threads.map(lambda batch: classifier.predict(batch).logits, batches))
                for logits, right in zip(found, expected, strict=True):
                    np.testing.assert_allclose(logits, right, rtol=1e-3, atol=1e-3)
            stop.set()
            assert busy.result(60)
