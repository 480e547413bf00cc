from __future__ import annotations

import itertools
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sad_runtime.classifier import Classifier
from sad_runtime.errors import ErrorCode
from sad_runtime.overlay import OverlayWriter
from sad_runtime.pipeline import classify
from sad_runtime.preprocess import load
from sad_runtime.results import Row

from .tiny_bundle import LinearModel, write_tiny_bundle


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


def rows_of(batches: Iterator[list[Row]]) -> list[Row]:
    return list(itertools.chain.from_iterable(batches))


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_rows_are_the_models_and_in_order(
    bundle_folder: Path, model: LinearModel, photos: list[Path], batch_size: int
) -> None:
    with Classifier.load(bundle_folder) as classifier:
        preprocessing = classifier.manifest.preprocessing
        rows = rows_of(classify(classifier, photos, batch_size=batch_size, workers=3, top_k=2))
    assert [row.path for row in rows] == [str(path) for path in photos]
    logits = model.two_pass(np.stack([load(path, preprocessing) for path in photos]))[0]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    for i, row in enumerate(rows):
        assert [item.label for item in row.ranking] == np.argsort(-logits[i])[:2].tolist()
        assert row.ranking[0].probability == pytest.approx(probabilities[i].max(), rel=1e-3)
        assert row.ranking[0].class_name == f"class {row.ranking[0].label}"


def test_bad_images_are_rows_of_their_own_and_stop_nothing(
    bundle_folder: Path, photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "cut.png").write_bytes(photos[0].read_bytes()[:100])
    bad = [tmp_path / name for name in ("empty.png", "text.png", "cut.png", "absent.png")]
    mixed = [bad[0], photos[0], bad[1], bad[2], photos[1], bad[3]]
    with Classifier.load(bundle_folder) as classifier:
        rows = rows_of(classify(classifier, mixed, batch_size=2))
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
    assert [row.ranking[0].label for row in rows if not row.error] == [row.ranking[0].label for row in alone]
    assert [row.error.code for row in nothing_else if row.error] == [empty, text, cut, absent]


def test_logits_that_are_not_finite_are_an_error_row(tmp_path: Path, model: LinearModel) -> None:
    bundle = write_tiny_bundle(tmp_path / "nan", model, nan_on_black=True)
    for name, level in (("black", 0), ("grey", 100)):
        Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / f"{name}.png")
    paths = [tmp_path / f"{name}.png" for name in ("grey", "black", "grey")]
    overlays = OverlayWriter(tmp_path / "overlays", tmp_path)
    with Classifier.load(bundle) as classifier:
        rows = rows_of(classify(classifier, paths, overlays=overlays))
    assert [row.error.code if row.error else None for row in rows] == [None, ErrorCode.NON_FINITE, None]
    assert [path.name for path in overlays.folder.iterdir()] == ["grey.png.png"]


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
        batches = classify(classifier, endless(), batch_size=4, workers=2)
        for _ in range(3):
            next(batches)
        assert taken <= 3 * 4 + 2 * 4 + 2
        batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_memory_does_not_grow_with_the_number_of_images(bundle_folder: Path, photos: list[Path]) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            for _ in classify(classifier, itertools.islice(itertools.cycle(photos), count), batch_size=8):
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


def test_overlays_are_there_when_their_rows_are(
    bundle_folder: Path, photos: list[Path], tmp_path: Path
) -> None:
    overlays = OverlayWriter(tmp_path / "overlays", photos[0].parent)
    with Classifier.load(bundle_folder) as classifier:
        for rows in classify(classifier, photos, batch_size=4, overlays=overlays):
            for row in rows:
                assert row.saliency == str(tmp_path / "overlays" / f"{Path(row.path).name}.png")
                with Image.open(row.saliency) as picture:
                    assert picture.size == (2 * 224 + 8, 224)
