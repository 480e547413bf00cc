from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from sad_runtime.labelled import Scores

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 200)
LOGITS = RNG.normal(size=(200, 5)) + 2 * np.eye(5)[LABELS]


def test_counts_are_scikit_learns() -> None:
    found = Scores.of_logits(LOGITS, LABELS)
    want = confusion_matrix(LABELS, LOGITS.argmax(1), labels=range(5))
    np.testing.assert_array_equal(found.confusion, want)
    assert found.accuracy.count == np.trace(want)
    assert set(found.by_class) == {0, 1, 2, 3}, "a class without images has no accuracy"
    assert found.by_class[2].count == want[2, 2] and found.by_class[2].images == want[2].sum()
    true, said, images = found.mistaken(1)[0]
    np.fill_diagonal(want, 0)
    assert images == want.max() == want[true, said]


def test_confidence_is_compared_with_accuracy() -> None:
    """Of 100 answers of confidence 0.9, 60 right: 30 points."""
    logits = np.tile(np.log([0.9, 0.1]), (100, 1))
    labels = np.repeat([0, 1], [60, 40])
    found = Scores.of_logits(logits, labels)
    assert found.calibration_error == pytest.approx(30)
    (only,) = found.calibration
    assert (only.images, only.accuracy) == (100, 60) and only.confidence == pytest.approx(90)


def test_an_answer_that_is_not_finite_is_wrong() -> None:
    logits = LOGITS.copy()
    logits[:5] = np.nan
    found = Scores.of_logits(logits, logits[:, :4].argmax(1))
    assert found.accuracy.count <= 195
