from __future__ import annotations

import itertools
import os
import threading
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sad_runtime.classifier import Classifier
from sad_runtime.errors import ErrorCode, UserError
from sad_runtime.overlay import OverlayWriter
from sad_runtime.pipeline import Options, Pipeline, classify
from sad_runtime.preprocessing import load
from sad_runtime.results import Row
from sad_runtime.sources import FileItem, open_sources
from tests.support.tiny_bundle import LinearModel, write_tiny_bundle

Images = npt.NDArray[np.float32]


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Ten images of different sizes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(5)
    paths = []
    for i in range(10):
        pixels = rng.integers(0, 256, (8 + i, 20 - i, 3), dtype=np.uint8)
        paths.append(folder / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def rows_of(batches: Iterable[list[Row]]) -> list[Row]:
    return list(itertools.chain.from_iterable(batches))


def threads() -> list[str]:
    mine = ("decode", "find", "model")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(mine)]


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_rows_are_the_models_and_in_order(
    bundle_folder: Path, model: LinearModel, photos: list[Path], batch_size: int
) -> None:
    with Classifier.load(bundle_folder) as classifier:
        preprocessing = classifier.manifest.preprocessing
        rows = rows_of(classify(classifier, photos, Options(batch_size=batch_size, workers=3, top_k=2)))
    assert [row.path for row in rows] == [str(path) for path in photos]
    images = [load(FileItem(str(path)), preprocessing).pixels for path in photos]
    logits, _, plain = model.two_pass(np.stack(images))
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    for i, row in enumerate(rows):
        assert [item.label for item in row.ranking] == np.argsort(-logits[i])[:2].tolist()
        assert row.probability == pytest.approx(probabilities[i].max(), rel=1e-3)
        assert row.class_name == f"class {row.label}"
        assert row.plain is not None
        assert (row.plain.label, row.plain.class_name) == (plain[i].argmax(), f"class {plain[i].argmax()}")
        assert (row.size, row.mtime_ns) == (photos[i].stat().st_size, photos[i].stat().st_mtime_ns)


def test_a_row_does_not_depend_on_its_batch(bundle_folder: Path, photos: list[Path]) -> None:
    with Classifier.load(bundle_folder) as classifier:
        alone, by_four, together = (
            rows_of(classify(classifier, photos, Options(batch_size=size, logits=True, saliency_stats=True)))
            for size in (1, 4, 10)
        )
    assert [row.label for row in alone] == [row.label for row in by_four] == [row.label for row in together]
    for a, b, c in zip(alone, by_four, together, strict=True):
        assert a.logits is not None
        # The matrix product's order of summation changes with the number of rows.
        assert b.logits == pytest.approx(a.logits, rel=1e-5, abs=1e-5)
        assert c.logits == pytest.approx(a.logits, rel=1e-5, abs=1e-5)
        assert a.statistics == b.statistics == c.statistics


def test_batches_are_filled_across_folders(bundle_folder: Path, photos: list[Path]) -> None:
    for i, path in enumerate(photos):
        path.parent.joinpath(str(i)).mkdir()
        path.rename(path.parent / str(i) / path.name)
    with open_sources([photos[0].parent]) as sources, Classifier.load(bundle_folder) as classifier:
        batches = list(classify(classifier, sources, Options(batch_size=4)))
    assert [len(rows) for rows in batches] == [4, 4, 2]


def test_bad_images_are_rows_of_their_own_and_stop_nothing(
    bundle_folder: Path, photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "cut.png").write_bytes(photos[0].read_bytes()[:100])
    bad = [tmp_path / name for name in ("empty.png", "text.png", "cut.png", "absent.png")]
    mixed = [bad[0], photos[0], bad[1], bad[2], photos[1], bad[3]]
    with Classifier.load(bundle_folder) as classifier:
        rows = rows_of(classify(classifier, mixed, Options(batch_size=2)))
        alone = rows_of(classify(classifier, photos[:2]))
        nothing_else = rows_of(classify(classifier, bad))
    codes = [row.error.code if row.error else None for row in rows]
    empty, text, cut, absent = (
        ErrorCode.EMPTY,
        ErrorCode.NOT_AN_IMAGE,
        ErrorCode.TRUNCATED,
        ErrorCode.NOT_FOUND,
    )
    assert codes == [empty, None, text, cut, None, absent]
    assert [row.label for row in rows if not row.error] == [row.label for row in alone]
    assert [row.error.code for row in nothing_else if row.error] == [empty, text, cut, absent]
    assert [row.size for row in nothing_else] == [0, 4, 100, None]


@pytest.mark.parametrize("output", ["logits", "plain_logits", "saliency"])
def test_an_output_that_is_not_finite_is_an_error_row_and_no_class(
    bundle_folder: Path, photos: list[Path], tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlays = OverlayWriter(tmp_path / "overlays", tmp_path)
    with Classifier.load(bundle_folder) as classifier:
        run = classifier.backend.run

        def poisoned(
            images: npt.NDArray[np.float32], outputs: list[str]
        ) -> dict[str, npt.NDArray[np.float32]]:
            values = run(images, outputs)
            values[output][1] = np.nan
            return values

        monkeypatch.setattr(classifier.backend, "run", poisoned)
        rows = rows_of(classify(classifier, photos[:3], Options(pictures=[overlays])))
    assert [row.error.code if row.error else None for row in rows] == [None, ErrorCode.NON_FINITE, None]
    assert rows[1].error is not None
    assert output.replace("_", " ") in rows[1].error.message
    assert rows[1].ranking == ()
    assert sorted(path.name for path in (overlays.folder / "photos").iterdir()) == ["0.png.png", "2.png.png"]


def test_logits_of_a_real_graph_that_are_not_finite_are_an_error_row(
    tmp_path: Path, model: LinearModel
) -> None:
    bundle = write_tiny_bundle(tmp_path / "nan", model, nan_on_black=True)
    for name, level in (("black", 0), ("grey", 100)):
        Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / f"{name}.png")
    with Classifier.load(bundle) as classifier:
        rows = rows_of(classify(classifier, [tmp_path / f"{name}.png" for name in ("grey", "black", "grey")]))
    assert [row.error.code if row.error else None for row in rows] == [None, ErrorCode.NON_FINITE, None]


def test_saliency_statistics_are_those_of_the_saliency(
    bundle_folder: Path, model: LinearModel, photos: list[Path]
) -> None:
    with Classifier.load(bundle_folder) as classifier:
        preprocessing = classifier.manifest.preprocessing
        (row,) = rows_of(classify(classifier, photos[:1], Options(saliency_stats=True)))
    saliency = model.two_pass(load(FileItem(str(photos[0])), preprocessing).pixels[None])[1]
    assert row.statistics is not None
    assert row.statistics.l1_mean == pytest.approx(np.abs(saliency).mean(), rel=1e-5)
    assert row.statistics.l2 == pytest.approx(np.linalg.norm(saliency), rel=1e-5)
    assert row.statistics.largest == pytest.approx(np.abs(saliency).max(), rel=1e-5)


def test_frames_of_an_animation_are_counted(bundle_folder: Path, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (9, 9), (80 * i, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with Classifier.load(bundle_folder) as classifier:
        (row,) = rows_of(classify(classifier, [tmp_path / "moving.gif"]))
    assert row.frames == 3


def test_endless_input_is_read_as_needed_and_closing_ends_the_threads(
    bundle_folder: Path, photos: list[Path]
) -> None:
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        for path in itertools.cycle(photos):
            taken += 1
            yield path

    with Classifier.load(bundle_folder) as classifier:
        batches = classify(classifier, endless(), Options(batch_size=4, workers=2))
        for _ in range(3):
            next(batches)
        time.sleep(0.2)  # long enough to read on, were it not held back
        # Returned; one in the model or behind it, which makes room for the window of two and one a worker.
        assert taken <= 3 * 4 + 4 + 2 * 4 + 2
        batches.close()
    assert not threads()


def test_the_model_goes_on_while_rows_are_written(
    bundle_folder: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Classifier.load(bundle_folder) as classifier:
        run, begun = classifier.backend.run, threading.Semaphore(0)

        def counted(
            images: npt.NDArray[np.float32], outputs: list[str]
        ) -> dict[str, npt.NDArray[np.float32]]:
            begun.release()
            return run(images, outputs)

        monkeypatch.setattr(classifier.backend, "run", counted)
        with Pipeline(classifier, photos, Options(batch_size=5)) as batches:
            next(batches)  # the writer has the first batch in its hands, and the second is begun
            assert all(begun.acquire(timeout=10) for _ in range(2))


def test_stopping_returns_the_batch_in_the_model_and_begins_no_other(
    bundle_folder: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Classifier.load(bundle_folder) as classifier:
        run, begun, go = classifier.backend.run, threading.Event(), threading.Event()

        def slow(images: Images, outputs: list[str]) -> dict[str, Images]:
            begun.set()
            assert go.wait(10)
            return run(images, outputs)

        monkeypatch.setattr(classifier.backend, "run", slow)
        with Pipeline(classifier, itertools.cycle(photos), Options(batch_size=4)) as batches:
            assert begun.wait(10)
            batches.stop()
            go.set()
            assert [row.path for row in rows_of(batches)] == [str(path) for path in photos[:4]]
    assert not threads()


def test_a_source_that_waits_holds_back_no_finished_row(bundle_folder: Path, photos: list[Path]) -> None:
    """Paths that come in slowly, on standard input for example."""
    go_on = threading.Event()

    def slowly() -> Iterator[Path]:
        yield from photos[:4]
        assert go_on.wait(10)
        yield photos[4]

    with Classifier.load(bundle_folder) as classifier:
        batches = classify(classifier, slowly(), Options(batch_size=4))
        assert len(next(batches)) == 4
        go_on.set()
        assert [len(rows) for rows in batches] == [1]


def test_an_unanswering_source_does_not_stop_the_end(bundle_folder: Path, photos: list[Path]) -> None:
    reader, writer = os.pipe()

    def waiting() -> Iterator[Path]:
        yield photos[0]
        os.read(reader, 1)

    with Classifier.load(bundle_folder) as classifier:
        started = time.monotonic()
        with Pipeline(classifier, waiting(), Options(batch_size=1)) as batches:
            assert len(next(batches)) == 1
        assert time.monotonic() - started < 5
    os.close(writer)


def test_what_a_source_raises_comes_after_the_rows_before_it(bundle_folder: Path, photos: list[Path]) -> None:
    def broken() -> Iterator[Path]:
        yield from photos[:3]
        raise UserError("the list went away")

    with Classifier.load(bundle_folder) as classifier:
        batches = classify(classifier, broken(), Options(batch_size=2))
        assert [len(next(batches)), len(next(batches))] == [2, 1]
        with pytest.raises(UserError, match="went away"):
            next(batches)
    assert not threads()


def test_memory_does_not_grow_with_the_number_of_images(bundle_folder: Path, photos: list[Path]) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            for _ in classify(
                classifier, itertools.islice(itertools.cycle(photos), count), Options(batch_size=8)
            ):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    with Classifier.load(bundle_folder) as classifier:
        few = max(peak(100) for _ in range(3))  # what decode threads hold at once varies
        assert peak(2000) < 2 * few


def test_no_images_are_no_rows(bundle_folder: Path) -> None:
    with Classifier.load(bundle_folder) as classifier:
        assert list(classify(classifier, [])) == []


@pytest.mark.parametrize("name", ["batch_size", "workers", "top_k"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be at least 1, got 0"):
        Options(**{name: 0})  # type: ignore[arg-type]


def test_overlays_are_there_when_their_rows_are(
    bundle_folder: Path, photos: list[Path], tmp_path: Path
) -> None:
    overlays = OverlayWriter(tmp_path / "overlays", photos[0].parent)
    with Classifier.load(bundle_folder) as classifier:
        for rows in classify(classifier, photos, Options(batch_size=4, pictures=[overlays])):
            for row in rows:
                assert row.saliency == str(tmp_path / "overlays" / f"{Path(row.path).name}.png")
                with Image.open(row.saliency) as picture:
                    assert picture.size == (2 * 224 + 8, 224)


def test_a_picture_that_cannot_be_written_ends_the_run(bundle_folder: Path, photos: list[Path]) -> None:
    class Full:
        def write(self, name: str, image: Images, saliency: Images) -> Path | None:
            raise UserError("no room on the disk")

    with (
        Classifier.load(bundle_folder) as classifier,
        pytest.raises(UserError, match="no room"),
    ):
        rows_of(classify(classifier, photos, Options(pictures=[Full()])))
    assert not threads()
