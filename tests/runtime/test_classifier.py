from __future__ import annotations

import dataclasses
import itertools
import math
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sad_runtime.bundle import Bundle
from sad_runtime.classifier import Classifier
from sad_runtime.errors import BundleError, UserError
from sad_runtime.prediction import softmax
from tests.support.tiny_bundle import Array, LinearModel, changed


def images(count: int, *, seed: int = 3) -> Array:
    return np.random.default_rng(seed).random((count, 3, 8, 8), dtype=np.float32)


@pytest.mark.parametrize("count", [1, 2, 33])
def test_prediction_is_the_two_pass_formula(bundle_folder: Path, model: LinearModel, count: int) -> None:
    batch = images(count)
    with Classifier.load(bundle_folder, backend="cpu") as classifier:
        prediction = classifier.predict(batch, outputs=("logits", "saliency", "plain_logits"))
    logits, saliency, plain = model.two_pass(batch)
    np.testing.assert_allclose(prediction.logits, logits, rtol=1e-4, atol=1e-4)
    assert prediction.plain_logits is not None
    np.testing.assert_allclose(prediction.plain_logits, plain, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(prediction.saliency, saliency)
    np.testing.assert_array_equal(prediction.labels, logits.argmax(axis=1))
    np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1, rtol=1e-12)


def test_logits_are_always_returned_and_nothing_else_unasked(bundle_folder: Path) -> None:
    with Classifier.load(bundle_folder) as classifier:
        only = classifier.predict(images(2))
        assert only.saliency is None
        assert only.plain_logits is None
        assert classifier.predict(images(2), outputs=("saliency",)).logits.shape == (2, 4)


def test_empty_batch_gives_empty_outputs(bundle_folder: Path) -> None:
    with Classifier.load(bundle_folder) as classifier:
        prediction = classifier.predict(images(0), outputs=("saliency", "plain_logits"))
    assert prediction.logits.shape == (0, 4)
    assert prediction.labels.shape == (0,)
    assert prediction.probabilities.shape == (0, 4)
    assert prediction.saliency is not None
    assert prediction.saliency.shape == (0, 3, 8, 8)


def test_images_need_not_be_contiguous(bundle_folder: Path) -> None:
    batch = images(4)
    with Classifier.load(bundle_folder) as classifier:
        expected = classifier.predict(batch[::2].copy()).logits
        np.testing.assert_array_equal(classifier.predict(batch[::2]).logits, expected)


def with_value(value: float) -> Array:
    batch = images(3)
    batch[1, 2, 3, 4] = value
    return batch


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (images(2).tolist(), r"images\[0\]: list is no image"),
        (7, "int is no image"),
        ([images(1)[0], None], r"images\[1\]: NoneType is no image"),
        ([images(1)], r"images\[0\]: an array must be \(3, 8, 8\) of floats .* got \(1, 3, 8, 8\)"),
        (images(2).astype(np.int32), "got int32"),
        ((images(2) * 255).astype(np.uint8), r"\(N, H, W, C\) of uint8 .* got \(2, 3, 8, 8\) of uint8"),
        (images(2)[0].transpose(1, 2, 0), r"an array must be \(3, 8, 8\) of floats .* got \(8, 8, 3\)"),
        (images(2).transpose(0, 2, 3, 1), r"\(N, 3, 8, 8\) float32 in \[0, 1\], got shape \(2, 8, 8, 3\)"),
        (images(2)[:, :1], r"got shape \(2, 1, 8, 8\)"),
        (with_value(math.nan), r"images\[1\] holds a value that is not finite"),
        (with_value(math.inf), r"images\[1\] holds a value that is not finite"),
        (with_value(-0.01), r"must be in \[0, 1\], got -0.01 to"),
        (with_value(255), r"must be in \[0, 1\], got .* to 255"),
    ],
)
def test_images_of_another_kind_are_refused(bundle_folder: Path, wrong: Array, message: str) -> None:
    with Classifier.load(bundle_folder) as classifier, pytest.raises(UserError, match=message):
        classifier.predict(wrong)


def test_unknown_output_is_refused(bundle_folder: Path) -> None:
    with Classifier.load(bundle_folder) as classifier, pytest.raises(UserError, match="no output gradient"):
        classifier.predict(images(1), outputs=("gradient",))


def test_unknown_backend_is_refused_with_the_known_ones(bundle_folder: Path) -> None:
    with pytest.raises(UserError, match="there are auto, cpu, openvino, cuda, tensorrt, rtx"):
        Classifier.load(bundle_folder, backend="tpu")


def test_graph_with_another_number_of_classes_is_refused(bundle_folder: Path) -> None:
    other = dataclasses.replace(Bundle.open(bundle_folder).manifest.model, num_classes=2)
    with changed(bundle_folder, model=other, classes=("a", "b")):
        pass
    with Classifier.load(bundle_folder) as classifier, pytest.raises(BundleError, match="2 classes"):
        classifier.predict(images(1))


def test_loaded_bundle_names_its_backend_and_manifest(bundle_folder: Path) -> None:
    with Classifier.load(Bundle.open(bundle_folder), backend="cpu") as classifier:
        assert classifier.backend_name == "cpu"
        assert classifier.backend_reason.startswith("asked for; not verified here")
        assert classifier.manifest.classes[0] == "class 0"


def test_repr_says_what_the_classifier_is(bundle_folder: Path) -> None:
    with Classifier.load(bundle_folder, backend="cpu") as classifier:
        shown = repr(classifier)
    expected = "tests.linear, 4 classes, images 3×8×8, η = 0.3, on cpu>"
    assert shown == f"<Classifier of {bundle_folder}: {expected}"


def test_closing_twice_is_harmless(bundle_folder: Path) -> None:
    classifier = Classifier.load(bundle_folder)
    classifier.close()
    classifier.close()


def test_softmax_of_huge_logits_is_finite() -> None:
    result = softmax(np.array([[3e38, -3e38, 3e38], [-3e38, -3e38, -3e38]], np.float32))
    np.testing.assert_allclose(result, [[0.5, 0, 0.5], [1 / 3, 1 / 3, 1 / 3]], rtol=1e-12)


def test_stream_is_one_row_an_image_in_order_and_ends_its_threads(
    bundle_folder: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / "photos" / f"{i}.png" for i in range(5)]
    paths[0].parent.mkdir()
    for i, path in enumerate(paths):
        Image.new("RGB", (9, 9), (40 * i, 200 - 40 * i, 0)).save(path)
    with Classifier.load(bundle_folder) as classifier:
        rows = list(classifier.stream(iter(paths), batch_size=2, top_k=1, logits=True))
        assert [row.path for row in rows] == [str(path) for path in paths]
        for row in rows:
            assert row.logits is not None
            assert row.label == int(np.argmax(row.logits))
            assert len(row.ranking) == 1
        assert [row.label for row in classifier.stream(tmp_path / "photos")] == [row.label for row in rows]
        endless = classifier.stream(itertools.cycle(paths), batch_size=2)
        assert next(endless).path == str(paths[0])
        endless.close()
    assert not [thread for thread in threading.enumerate() if thread.name in ("find", "model")]


def test_stream_of_a_source_that_does_not_exist_is_refused(bundle_folder: Path) -> None:
    with (
        Classifier.load(bundle_folder) as classifier,
        pytest.raises(UserError, match="no such file or folder"),
    ):
        next(classifier.stream("absent"))
