from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from sad_runtime.bundle import Bundle
from sad_runtime.errors import BundleError
from sad_runtime.manifest import Engine
from tests.support.tiny_bundle import LinearModel, write_tiny_bundle


def refused(folder: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    return caught.value


def test_written_bundle_opens_and_verifies(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)
    bundle.verify()
    assert bundle.file("model.onnx").read_bytes() == (bundle_folder / "model.onnx").read_bytes()
    assert set(bundle.manifest.files) == {"model.onnx", "weights.safetensors"}
    assert bundle.manifest.created_by.startswith("sad-deploy ")


def test_each_way_not_to_be_a_bundle_has_its_own_message(tmp_path: Path, bundle_folder: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = shutil.copytree(bundle_folder, tmp_path / "broken")
    (broken / "manifest.json").write_text("{")
    newer = shutil.copytree(bundle_folder, tmp_path / "newer")
    values = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps(values | {"schema": 2}))
    incomplete = shutil.copytree(bundle_folder, tmp_path / "incomplete")
    (incomplete / "model.onnx").unlink()
    (incomplete / "weights.safetensors").unlink()

    errors = {
        path.name: refused(path) for path in (tmp_path / "none", file, empty, broken, newer, incomplete)
    }
    parts = {
        "none": "no bundle at",
        "file": "is not a folder",
        "empty": "has no manifest.json",
        "broken": "not valid JSON",
        "newer": "newer sad-deploy",
        "incomplete": "missing: model.onnx, weights.safetensors",
    }
    for name, part in parts.items():
        assert part in errors[name].message
        assert str(tmp_path / name) in errors[name].message
    assert len({error.message for error in errors.values()}) == len(parts)
    assert "sad-deploy calibrate" in str(errors["none"].hint)


@pytest.mark.parametrize("name", ["model.onnx", "weights.safetensors"])
def test_one_changed_byte_is_found(bundle_folder: Path, name: str) -> None:
    path = bundle_folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    bundle = Bundle.open(bundle_folder)
    with pytest.raises(BundleError, match="was changed since the bundle was written"):
        bundle.file(name)
    with pytest.raises(BundleError, match=f"changed since the bundle was written: {name}"):
        bundle.verify()


def test_file_is_hashed_once(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)
    bundle.file("model.onnx")
    (bundle_folder / "model.onnx").write_bytes(b"changed after the first use")
    assert bundle.file("model.onnx") == bundle_folder / "model.onnx"
    assert Bundle.open(bundle_folder).changed_files() == ["model.onnx"]


def test_unlisted_file_is_not_handed_out(bundle_folder: Path) -> None:
    (bundle_folder / "more.onnx").touch()
    with pytest.raises(BundleError, match=r"lists no file 'more\.onnx'"):
        Bundle.open(bundle_folder).file("more.onnx")


def test_link_out_of_the_folder_is_refused(bundle_folder: Path, tmp_path: Path) -> None:
    outside = (bundle_folder / "model.onnx").rename(tmp_path / "outside.onnx")
    (bundle_folder / "model.onnx").symlink_to(outside)
    assert "leads out of the folder: model.onnx" in refused(bundle_folder).message


def test_linked_folder_out_of_the_bundle_is_refused(bundle_folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (bundle_folder / "model.onnx").rename(outside / "model.onnx")
    (bundle_folder / "graphs").symlink_to(outside)
    text = (bundle_folder / "manifest.json").read_text().replace('"model.onnx"', '"graphs/model.onnx"')
    (bundle_folder / "manifest.json").write_text(text)
    assert "leads out of the folder: graphs/model.onnx" in refused(bundle_folder).message


def test_bundle_reached_through_a_link_opens(bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle_folder)
    Bundle.open(tmp_path / "link").verify()


def test_folder_in_the_place_of_a_file_is_missing(bundle_folder: Path) -> None:
    (bundle_folder / "model.onnx").unlink()
    (bundle_folder / "model.onnx").mkdir()
    assert "missing: model.onnx" in refused(bundle_folder).message


def test_unreadable_manifest_is_said_to_be_so(bundle_folder: Path) -> None:
    (bundle_folder / "manifest.json").unlink()
    (bundle_folder / "manifest.json").mkdir()
    assert "manifest.json cannot be read" in refused(bundle_folder).message


def test_bundle_that_was_not_exported_says_how_to(tmp_path: Path, model: LinearModel) -> None:
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "b", model, exported=False))
    with pytest.raises(BundleError) as caught:
        bundle.graph()
    assert caught.value.hint == f"sad-deploy export {tmp_path / 'b'}"


def test_precision_that_was_not_exported_is_named_with_those_that_were(bundle_folder: Path) -> None:
    with pytest.raises(BundleError, match="has no fp16 graph, only fp32"):
        Bundle.open(bundle_folder).graph("fp16")


def test_the_graph_handed_out_is_of_the_precision_asked_for(bundle_folder: Path) -> None:
    (graph,) = Bundle.open(bundle_folder).manifest.graphs
    assert Bundle.open(bundle_folder).graph("fp32") == graph
    both = (dataclasses.replace(graph, precision="bf16"), graph)
    for graphs in (both, both[::-1]):
        manifest = dataclasses.replace(Bundle.open(bundle_folder).manifest, graphs=graphs)
        assert Bundle(bundle_folder, manifest).graph("fp32") is graph


def test_missing_engine_says_how_to_build_it(bundle_folder: Path) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle_folder).engine("rtx")
    assert "sad-deploy export" in str(caught.value.hint)
    assert "--trt --flavor rtx" in str(caught.value.hint)


def test_the_engine_handed_out_is_of_the_flavor_and_the_precision_asked_for(bundle_folder: Path) -> None:
    """Also where one of an earlier name comes first."""
    engines = tuple(
        Engine(f"{flavor}-{precision}.plan", f"{flavor}-{precision}.json", "model.onnx", flavor, precision)
        for flavor in ("rtx", "tensorrt")
        for precision in ("bf16", "fp16", "fp32")
    )
    manifest = Bundle.open(bundle_folder).manifest
    files = manifest.files | {name: "0" * 64 for each in engines for name in (each.file, each.sidecar)}
    for order in (engines, engines[::-1]):
        bundle = Bundle(bundle_folder, dataclasses.replace(manifest, engines=order, files=files))
        for engine in engines:
            assert bundle.engine(engine.flavor, engine.precision) is engine


@pytest.mark.parametrize("word", ["fp8", "", "fp32-fp8", "fp32-fp32"])
def test_what_is_no_precision_is_told_what_one_is(bundle_folder: Path, word: str) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle_folder).graph(word)
    assert str(caught.value.hint).startswith("a precision is one of fp32, fp16, bf16, int8")
