"""A backend is tried on the bundle's own images before it is first used."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sad_runtime.backends import BackendOptions, open_backend
from sad_runtime.bundle import Bundle
from sad_runtime.choices import BackendChoice
from sad_runtime.devices import cuda_devices
from sad_runtime.errors import BackendError
from sad_runtime.manifest import Graph
from tests.support.tiny_bundle import LinearModel, changed, two_pass_graph, write_tiny_bundle

no_gpu = pytest.mark.skipif(cuda_devices().count > 0, reason="what is chosen where there is no GPU")
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs the extra openvino; the test install has it"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sad-deploy" / "verified"


@pytest.fixture
def bundle(tmp_path: Path, model: LinearModel) -> Bundle:
    return Bundle.open(write_tiny_bundle(tmp_path / "b", model, references=6))


def with_wrong_saliency(model: LinearModel) -> onnx.ModelProto:
    """The network's graph with other rows gathered as its saliency; labels and plain logits are right."""
    graph = two_pass_graph(model)
    other = np.random.default_rng(9).normal(size=model.weight.shape).astype(np.float32)
    rows = numpy_helper.from_array(other.reshape(len(other), -1) * 1e-3, "rows")
    graph.graph.initializer.append(rows)
    next(node for node in graph.graph.node if node.op_type == "Gather").input[0] = "rows"
    return graph


@pytest.fixture
def wrong(tmp_path: Path, model: LinearModel) -> Bundle:
    graph = with_wrong_saliency(model)
    return Bundle.open(write_tiny_bundle(tmp_path / "w", model, references=6, graph=graph))


def test_what_was_verified_once_is_remembered(bundle: Bundle, cache: Path) -> None:
    reasons = []
    for _ in range(2):
        opened = open_backend(bundle, BackendChoice.CPU)
        opened.backend.close()
        reasons.append(opened.reason)
    assert reasons == ["asked for; verified here on 4 images", "asked for; verified here before"]
    (record,) = cache.iterdir()
    assert json.loads(record.read_text())["shortfalls"] == []


def test_a_wrong_saliency_is_refused_every_time(wrong: Bundle, cache: Path) -> None:
    for _ in range(2):
        with pytest.raises(BackendError, match="median saliency cosine") as caught:
            open_backend(wrong, BackendChoice.CPU)
        assert f"{wrong.root}/model.onnx does not compute on cpu here" in caught.value.message
        assert "--unverified" in str(caught.value.hint)


def test_unverified_runs_it_and_says_so(wrong: Bundle, cache: Path) -> None:
    notices: list[str] = []
    opened = open_backend(wrong, BackendChoice.CPU, BackendOptions(unverified=True, notice=notices.append))
    opened.backend.close()
    assert opened.reason == "asked for; unverified"
    assert len(notices) == 1
    assert "median saliency cosine" in notices[0]


def test_another_graph_is_tried_again(bundle: Bundle, cache: Path, model: LinearModel) -> None:
    open_backend(bundle, BackendChoice.CPU).backend.close()
    with changed(bundle.root) as draft:
        onnx.save(with_wrong_saliency(model), draft.path("model.onnx"))
    with pytest.raises(BackendError, match="does not compute"):
        open_backend(Bundle.open(bundle.root), BackendChoice.CPU)


def test_a_cache_that_cannot_be_used_only_means_another_trial(bundle: Bundle, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    for _ in range(2):
        opened = open_backend(bundle, BackendChoice.CPU)
        opened.backend.close()
        assert opened.reason.endswith("verified here on 4 images")


def test_a_damaged_record_is_no_record(bundle: Bundle, cache: Path) -> None:
    open_backend(bundle, BackendChoice.CPU).backend.close()
    (record,) = cache.iterdir()
    for content in ("", "{}", '{"shortfalls": 3, "seconds_per_image": "x", "images": 1}', "[1]"):
        record.write_text(content)
        opened = open_backend(bundle, BackendChoice.CPU)
        opened.backend.close()
        assert opened.reason.endswith("verified here on 4 images")


def test_what_an_export_accepted_is_not_refused_later(
    tmp_path: Path, cache: Path, model: LinearModel
) -> None:
    """``--allow-inaccurate`` was the user's word; only the figures that it let pass are let pass here."""
    figures = {
        "images": 6.0,
        "label_agreement": 1.0,
        "plain_label_agreement": 1.0,
        "logits_relative_l2": 0.9,
        "plain_logits_relative_l2": 0.0,
        "saliency_cosine_median": 0.0,
        "saliency_cosine_min": -0.5,
        "saliency_variation": 1.0,
        "zero_saliencies": 0.0,
    }
    folder = write_tiny_bundle(tmp_path / "w", model, references=6, graph=with_wrong_saliency(model))
    with changed(folder, graphs=(Graph("model.onnx", "fp32", "auto", "portable", figures),)):
        pass
    try:
        open_backend(Bundle.open(folder), BackendChoice.CPU).backend.close()
    except BackendError as error:
        assert "cosine" not in error.message
        assert "label agreement" in error.message


@no_gpu
@needs_openvino
def test_auto_takes_the_faster_of_those_that_are_right(bundle: Bundle, cache: Path) -> None:
    opened = open_backend(bundle)
    opened.backend.close()
    assert opened.backend.name in ("cpu", "openvino")
    times = {
        name: float(opened.reason.partition(f"{name} ")[2].partition(" ms an image")[0])
        for name in ("faster here: cpu", "openvino")
    }
    fastest = "cpu" if times["faster here: cpu"] <= times["openvino"] else "openvino"
    assert opened.backend.name == fastest
    assert len(list(cache.iterdir())) == 2


@no_gpu
@needs_openvino
def test_auto_passes_over_what_is_wrong(tmp_path: Path, cache: Path, model: LinearModel) -> None:
    """The portable graph, which OpenVINO takes, is wrong; the form for onnxruntime's CPU is right."""
    folder = write_tiny_bundle(tmp_path / "w", model, references=6, graph=with_wrong_saliency(model))
    graphs = Bundle.open(folder).manifest.graphs
    with changed(folder, graphs=(*graphs, Graph("model.cpu.onnx", "fp32", "auto", "cpu", {}))) as draft:
        onnx.save(two_pass_graph(model), draft.path("model.cpu.onnx"))
    opened = open_backend(Bundle.open(folder))
    opened.backend.close()
    assert opened.backend.name == "cpu"
    assert "model.onnx does not compute on openvino here" in opened.reason


@no_gpu
def test_auto_with_nothing_right_is_refused(wrong: Bundle, cache: Path) -> None:
    with pytest.raises(BackendError, match="does not compute"):
        open_backend(wrong)


def test_nothing_is_written_into_the_bundle(bundle: Bundle, cache: Path) -> None:
    before = sorted(bundle.root.iterdir())
    open_backend(bundle).backend.close()
    assert sorted(bundle.root.iterdir()) == before
