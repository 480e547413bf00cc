"""A bare two-pass graph in place of a bundle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sad_runtime.bare_graph import BareOptions, bundle_of_graph, stated_by
from sad_runtime.bundle import Bundle
from sad_runtime.classifier import Classifier
from sad_runtime.errors import BundleError, UserError
from sad_runtime.graph_metadata import graph_metadata
from sad_runtime.manifest import ExifOrientation, Interpolation, Manifest
from tests.support.tiny_bundle import LinearModel, two_pass_graph


def write(path: Path, model: LinearModel, stated: dict[str, str]) -> Path:
    graph = two_pass_graph(model)
    onnx.helper.set_model_props(graph, stated)
    onnx.save(graph, path)
    return path


def defence_of(manifest: Manifest, **changed: Any) -> dict[str, str]:
    space, defence = manifest.input_space, manifest.defence
    settings: dict[str, Any] = {
        "eta": defence.eta,
        "normalization": defence.normalization,
        "clip": None,
        "mean": space.mean,
        "std": space.std,
    }
    return graph_metadata(**settings | changed)


@pytest.fixture
def manifest(bundle_folder: Path) -> Manifest:
    return Bundle.open(bundle_folder).manifest


def test_what_an_export_wrote_says_all_that_its_bundle_says(
    tmp_path: Path, model: LinearModel, manifest: Manifest
) -> None:
    path = write(tmp_path / "moved.onnx", model, defence_of(manifest) | stated_by(manifest))
    bare = bundle_of_graph(path, BareOptions()).manifest
    assert (bare.classes, bare.preprocessing) == (manifest.classes, manifest.preprocessing)
    assert (bare.defence, bare.input_space) == (manifest.defence, manifest.input_space)


def test_it_classifies_as_the_bundle_does(
    tmp_path: Path, bundle_folder: Path, model: LinearModel, manifest: Manifest
) -> None:
    path = write(tmp_path / "moved.onnx", model, defence_of(manifest) | stated_by(manifest))
    images = np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32)
    with (
        Classifier.load(bundle_of_graph(path, BareOptions()), backend="cpu") as bare,
        Classifier.load(bundle_folder, backend="cpu") as bundle,
    ):
        np.testing.assert_array_equal(bare.predict(images).logits, bundle.predict(images).logits)
        assert "sad-deploy verify" in bare.backend_reason
        assert "--against" in bare.backend_reason


def test_a_file_of_defend_takes_numbers_as_classes_and_its_own_size(
    tmp_path: Path, model: LinearModel, manifest: Manifest
) -> None:
    path = write(tmp_path / "model.sad.onnx", model, defence_of(manifest))
    bare = bundle_of_graph(path, BareOptions()).manifest
    assert bare.classes == ("0", "1", "2", "3")
    assert (bare.preprocessing.resize, bare.preprocessing.crop) == ((8, 8), (8, 8))


def test_a_graph_that_takes_images_as_they_are_can_be_loaded(
    tmp_path: Path, model: LinearModel, manifest: Manifest
) -> None:
    path = write(tmp_path / "model.sad.onnx", model, defence_of(manifest, mean=None, std=None))
    bundle = bundle_of_graph(path, BareOptions())
    assert bundle.manifest.input_space.mean == (0.0, 0.0, 0.0)
    Classifier.load(bundle, backend="cpu").close()


def test_options_override_what_the_file_says(tmp_path: Path, model: LinearModel, manifest: Manifest) -> None:
    path = write(tmp_path / "moved.onnx", model, defence_of(manifest) | stated_by(manifest))
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    options = BareOptions(
        resize=9,
        interpolation=Interpolation.BICUBIC,
        exif_orientation=ExifOrientation.IGNORE,
        classes=tmp_path / "names.txt",
    )
    bare = bundle_of_graph(path, options).manifest
    assert bare.classes == ("a", "b", "c", "d")
    assert bare.preprocessing == dataclasses.replace(
        manifest.preprocessing,
        resize=9,
        interpolation=Interpolation.BICUBIC,
        exif_orientation=ExifOrientation.IGNORE,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": 7}, "--resize 7 leaves less than the 8×8"),
        ({"classes": "names.txt"}, "3 class names for the 4 logits"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, model: LinearModel, manifest: Manifest, options: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "model.sad.onnx", model, defence_of(manifest))
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    if "classes" in options:
        options = {"classes": tmp_path / options["classes"]}
    with pytest.raises(UserError, match=message):
        bundle_of_graph(path, BareOptions(**options))


@pytest.mark.parametrize("value", ["", "[", json.dumps({"color": "RGB"}), json.dumps([1])])
def test_metadata_that_is_not_ours_is_one_line(
    tmp_path: Path, model: LinearModel, manifest: Manifest, value: str
) -> None:
    stated = defence_of(manifest) | {"sad_deploy.preprocessing": value}
    with pytest.raises(BundleError, match="does not say its preprocessing"):
        bundle_of_graph(write(tmp_path / "model.sad.onnx", model, stated), BareOptions())


def test_what_is_no_two_pass_graph_says_how_to_make_one(tmp_path: Path, model: LinearModel) -> None:
    path = write(tmp_path / "model.onnx", model, {})
    with pytest.raises(BundleError, match="no two-pass graph of sad-deploy") as caught:
        bundle_of_graph(path, BareOptions())
    assert caught.value.hint == f"sad-deploy defend {path} --eta X makes one of a classifier"
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x08")
    with pytest.raises(BundleError, match="cannot be read as an ONNX graph"):
        bundle_of_graph(tmp_path / "broken.onnx", BareOptions())
    with pytest.raises(UserError, match="no graph at"):
        bundle_of_graph(tmp_path / "missing.onnx", BareOptions())
