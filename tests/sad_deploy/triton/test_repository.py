"""A bundle as a model repository: files, versions, and what Triton's own messages make of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from sad_deploy.triton import TritonRequest, write_repository
from sad_runtime.bundle import Bundle
from sad_runtime.choices import TritonBackend, TritonDevice, TritonImages, TritonInput
from sad_runtime.errors import UserError
from tests.support.command_line import exit_code
from tests.support.tiny_bundle import changed, linear_model, write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(write_tiny_bundle(tmp_path / "tiny model", linear_model()))


def configuration(model: Path) -> model_config_pb2.ModelConfig:
    """Parsed by Triton's own message, which refuses a misspelled field."""
    return text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_a_graph_is_a_model_that_batches_warms_up_and_has_labels(bundle: Bundle, tmp_path: Path) -> None:
    (written,) = write_repository(bundle, TritonRequest(tmp_path / "repository"))
    assert written.model == tmp_path / "repository" / "tiny_model"
    assert (written.version, written.is_new) == (1, True)
    config = configuration(written.model)
    assert (config.name, config.backend, config.max_batch_size) == ("tiny_model", "onnxruntime", 16)
    assert [(each.name, list(each.dims)) for each in config.input] == [("image", [3, 8, 8])]
    assert {each.name: list(each.dims) for each in config.output} == {
        "logits": [4],
        "plain_logits": [4],
        "saliency": [3, 8, 8],
    }
    assert [each.label_filename for each in config.output] == ["labels.txt", "labels.txt", ""]
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 16]
    assert [each.batch_size for each in config.model_warmup] == [1, 8]
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_AUTO
    labels = (written.model / "labels.txt").read_text().splitlines()
    assert labels == list(bundle.manifest.classes)
    graph = bundle.file(bundle.graph().file)
    assert (written.model / "1" / "model.onnx").read_bytes() == graph.read_bytes()


def test_a_version_is_written_when_something_is_new(bundle: Bundle, tmp_path: Path) -> None:
    request = TritonRequest(tmp_path / "repository", name="digits")
    write_repository(bundle, request)
    (again,) = write_repository(bundle, request)
    assert (again.version, again.is_new) == (1, False)
    other = Bundle.open(write_tiny_bundle(tmp_path / "other", linear_model(seed=1)))
    (newer,) = write_repository(other, request)
    assert (newer.version, newer.is_new) == (2, True)
    assert sorted(each.name for each in newer.model.iterdir()) == ["1", "2", "config.pbtxt", "labels.txt"]
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]


def test_bytes_in_place_of_floats_give_the_same(bundle: Bundle, tmp_path: Path) -> None:
    (written,) = write_repository(bundle, TritonRequest(tmp_path / "r", input=TritonInput.UINT8))
    (given,) = configuration(written.model).input
    assert (given.data_type, list(given.dims)) == (model_config_pb2.TYPE_UINT8, [8, 8, 3])
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    names = ["logits", "saliency", "plain_logits"]
    providers = ["CPUExecutionProvider"]
    served = onnxruntime.InferenceSession(written.model / "1" / "model.onnx", providers=providers)
    own = onnxruntime.InferenceSession(bundle.file("model.onnx"), providers=providers)
    floats = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    for got, want in zip(
        served.run(names, {"image": pixels}), own.run(names, {"image": floats}), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_images_on_the_server_are_an_ensemble(bundle: Bundle, tmp_path: Path) -> None:
    request = TritonRequest(tmp_path / "r", name="m", images=TritonImages.SERVER)
    model, preparing, both = (each.model.name for each in write_repository(bundle, request))
    assert (model, preparing, both) == ("m", "m_preprocess", "m_images")
    steps = configuration(tmp_path / "r" / both).ensemble_scheduling.step
    assert [step.model_name for step in steps] == [preparing, model]
    assert steps[0].output_map["image"] == steps[1].input_map["image"]
    assert [each.is_new for each in write_repository(bundle, request)] == [False, False, False]


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"device": TritonDevice.CPU}, "KIND_CPU"),
        ({"device": TritonDevice.GPU, "instances": 2}, "KIND_GPU"),
        ({"backend": TritonBackend.OPENVINO}, "KIND_CPU"),
    ],
)
def test_where_it_runs(options: dict[str, object], kind: str, bundle: Bundle, tmp_path: Path) -> None:
    (written,) = write_repository(bundle, TritonRequest(tmp_path / "r", **options))  # type: ignore[arg-type]
    (group,) = configuration(written.model).instance_group
    assert group.kind == model_config_pb2.ModelInstanceGroup.Kind.Value(kind)
    assert group.count == options.get("instances", 1)


def test_class_names_are_a_line_each(bundle: Bundle, tmp_path: Path) -> None:
    with changed(bundle.root, classes=("a\nb", "c", 'd"', "é")):
        pass
    (written,) = write_repository(Bundle.open(bundle.root), TritonRequest(tmp_path / "r"))
    assert (written.model / "labels.txt").read_text(encoding="utf-8") == 'a b\nc\nd"\né\n'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "../up"}, "is no model's name"),
        ({"name": ""}, "is no model's name"),
        ({"instances": 0}, "at least one instance"),
        ({"backend": TritonBackend.OPENVINO, "device": TritonDevice.GPU}, "runs on CPUs"),
        ({"backend": TritonBackend.TENSORRT, "device": TritonDevice.CPU}, "runs on GPUs"),
        ({"backend": TritonBackend.TENSORRT, "input": TritonInput.UINT8}, "an engine's input is floats"),
        ({"input": TritonInput.UINT8, "images": TritonImages.SERVER}, "clients that decode"),
        ({"backend": TritonBackend.TENSORRT}, "no engine of enterprise TensorRT"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    options: dict[str, object], message: str, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        write_repository(bundle, TritonRequest(tmp_path / "r", **options))  # type: ignore[arg-type]
    assert not (tmp_path / "r" / "tiny_model").exists()


def test_a_folder_of_others_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    theirs = tmp_path / "r" / "tiny_model"
    theirs.mkdir(parents=True)
    (theirs / "config.pbtxt").write_text('name: "tiny_model"\n')
    with pytest.raises(UserError, match="not written by sad-deploy"):
        write_repository(bundle, TritonRequest(tmp_path / "r"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write a model repository at .*file"):
        write_repository(bundle, TritonRequest(tmp_path / "file"))


def test_the_command_takes_the_graph_that_is_there(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without torch, as a serving host has it: the tiny bundle's network is none that could be exported."""
    words = ["export", str(bundle.root), "--triton", str(tmp_path / "r"), "--input", "uint8", "--json"]
    assert exit_code(monkeypatch, *words) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == [{"model": str(tmp_path / "r" / "tiny_model"), "version": 1}]
    assert f"tritonserver --model-repository={tmp_path / 'r'}" in said.err
    assert exit_code(monkeypatch, "export", str(bundle.root), "--triton-name", "x") == 2
    assert "--triton-name: only with --triton" in capsys.readouterr().err
