from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sad_runtime.bundle import Bundle
from sad_runtime.errors import BundleError
from sad_runtime.verification.references import REFERENCES, read_references, write_references
from tests.support.tiny_bundle import LinearModel, changed, linear_model, write_tiny_bundle


def test_what_is_written_is_read_again(tmp_path: Path, model: LinearModel) -> None:
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "b", model, references=6))
    references = read_references(bundle)
    assert references is not None
    logits, saliency, plain = model.two_pass(references.images)
    np.testing.assert_allclose(references.logits, logits, rtol=1e-5)
    np.testing.assert_allclose(references.plain_logits, plain, rtol=1e-5)
    taken = references.taken({"saliency": saliency})["saliency"]
    scale = np.abs(taken).max(axis=1, keepdims=True)
    np.testing.assert_allclose(references.saliency, taken / scale, atol=1e-3)


@pytest.mark.parametrize(("side", "classes"), [(8, 4), (96, 1000), (600, 1000)])
def test_references_of_64_images_take_at_most_2_mb(tmp_path: Path, side: int, classes: int) -> None:
    rng = np.random.default_rng(0)
    saliency = 1e-9 * rng.standard_normal((1, 3, side, side)).repeat(64, axis=0)
    logits = rng.standard_normal((64, classes))
    write_references(tmp_path / REFERENCES, {"logits": logits, "plain_logits": logits, "saliency": saliency})
    assert (tmp_path / REFERENCES).stat().st_size <= 2_000_000
    with np.load(tmp_path / REFERENCES) as arrays:
        kept = len(arrays["logits"])
        assert arrays["saliency"].shape[0] == kept >= 60
        assert np.abs(arrays["saliency"]).max(axis=1).min() == 1  # float16 would have made 1e-9 a zero


def test_a_bundle_without_them_has_none(bundle_folder: Path) -> None:
    assert read_references(Bundle.open(bundle_folder)) is None


def test_references_of_another_network_are_refused(tmp_path: Path, model: LinearModel) -> None:
    folder = write_tiny_bundle(tmp_path / "b", model, references=6)
    other = write_tiny_bundle(tmp_path / "c", linear_model(classes=5), references=6)
    with changed(folder) as draft:
        draft.path(REFERENCES).write_bytes((other / REFERENCES).read_bytes())
    with pytest.raises(BundleError, match="does not fit the bundle's images and classes") as caught:
        read_references(Bundle.open(folder))
    assert "sad-deploy export" in str(caught.value.hint)


def test_a_file_that_is_no_archive_is_one_line(tmp_path: Path, model: LinearModel) -> None:
    folder = write_tiny_bundle(tmp_path / "b", model, references=6)
    with changed(folder) as draft:
        draft.path(REFERENCES).write_bytes(b"nothing")
    with pytest.raises(BundleError, match="cannot be read"):
        read_references(Bundle.open(folder))
