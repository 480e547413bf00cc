from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from sad_export import two_pass
from sad_runtime.errors import UserError
from tests.support.command_line import exit_code, run_command
from tests.support.differentiate import run as run_graph
from tests.support.models import forward_onnx, small_cnn


@pytest.fixture
def forward(tmp_path: Path) -> Path:
    path = tmp_path / "forward.onnx"
    onnx.save(forward_onnx(small_cnn()), str(path))
    return path


def test_the_gradient_goes_beside_the_classifier(forward: Path) -> None:
    run_command("gradient", str(forward))
    graph = onnx.load(str(forward.with_name("forward.gradient.onnx")))
    assert [o.name for o in graph.graph.output] == ["logits", "gradient"]
    x = np.random.default_rng(0).random((3, 3, 16, 16), dtype=np.float32)
    logits, dx = run_graph(graph, x=x)
    assert logits.shape == (3, 5)
    assert dx.shape == x.shape
    assert dx.any()


def test_what_cannot_be_differentiated_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="not a readable ONNX model"):
        run_command("gradient", str(tmp_path / "broken.onnx"), "--out", str(tmp_path / "out.onnx"))
    assert [p.name for p in tmp_path.iterdir()] == ["broken.onnx"]


def test_a_graph_too_large_for_one_file_is_refused_and_leaves_none(
    forward: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 GiB of weights are more than a test should hold: the limit is lowered."""
    monkeypatch.setattr("sad_export.graph.write.LARGEST_WEIGHTS", 1000)
    with pytest.raises(UserError, match="beyond the 2 GiB of one ONNX file"):
        run_command("gradient", str(forward))
    assert [p.name for p in forward.parent.iterdir()] == ["forward.onnx"]


def test_an_unwritable_destination_is_one_line(forward: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*out\.onnx: Not a directory"):
        run_command("gradient", str(forward), "--out", str(forward / "out.onnx"))


@pytest.mark.parametrize("name", [".", "/", ""])
def test_a_folder_is_no_classifier_and_no_destination(forward: Path, name: str) -> None:
    with pytest.raises(UserError, match="is a folder; a classifier is an ONNX file"):
        run_command("gradient", name)
    with pytest.raises(UserError, match="is a folder; --out names a file"):
        run_command("gradient", str(forward), "--out", name)


def test_a_folder_that_does_not_exist_is_made(forward: Path) -> None:
    run_command("gradient", str(forward), "--out", str(forward.parent / "new" / "folder" / "out.onnx"))
    onnx.checker.check_model(str(forward.parent / "new" / "folder" / "out.onnx"))


@pytest.mark.parametrize(
    ("options", "outputs"),
    [
        ("--at last", ["logits", "activation", "gradient"]),
        ("--method gradcam --of 2", ["logits", "heatmap"]),
        ("--method integrated --steps 4 --baseline 0.5,0.4,0.3", ["logits", "attribution"]),
        ("--method smoothgrad --samples 4 --noise 0.1 --noise-seed 7", ["logits", "gradient"]),
    ],
)
def test_each_method_names_its_outputs(
    forward: Path,
    options: str,
    outputs: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert exit_code(monkeypatch, "gradient", str(forward), *options.split()) == 0
    graph = onnx.load(str(forward.with_name("forward.gradient.onnx")))
    assert [o.name for o in graph.graph.output] == outputs
    said = capfd.readouterr().err
    assert f"outputs {outputs[0]} (N, 5)" in said
    takes_a_map = "activation" in outputs or "heatmap" in outputs
    assert ("note: the last feature map is relu_2 (N, 8, 4, 4)" in said) == takes_a_map


def test_an_option_of_another_method_is_one_line(forward: Path) -> None:
    with pytest.raises(UserError, match="--method saliency takes no --steps") as caught:
        run_command("gradient", str(forward), "--steps", "4")
    assert caught.value.hint == "--steps is for integrated"
    assert not forward.with_name("forward.gradient.onnx").exists()


def test_what_is_told_of_images_is_in_the_file_and_mean_and_std_in_the_graph(forward: Path) -> None:
    names = forward.with_name("names.txt")
    names.write_text("a\nb\nc\nd\nä\n")
    options = "--mean 0.5,0.4,0.3 --std 0.2,0.3,0.4 --resize 20 --exif-orientation ignore"
    run_command("gradient", str(forward), *options.split(), "--classes", str(names))
    graph = onnx.load(str(forward.with_name("forward.gradient.onnx")))
    said = {each.key: json.loads(each.value) for each in graph.metadata_props if each.key != "sad_deploy.of"}
    assert said == {
        "sad_deploy.mean": [0.5, 0.4, 0.3],
        "sad_deploy.std": [0.2, 0.3, 0.4],
        "sad_deploy.classes": ["a", "b", "c", "d", "ä"],
        "sad_deploy.preprocessing": {
            "color": "RGB",
            "resize": 20,
            "crop": [16, 16],
            "interpolation": "bilinear",
            "exif_orientation": "ignore",
        },
    }
    x = np.random.default_rng(0).random((2, 3, 16, 16), dtype=np.float32)
    mean, std = (np.reshape(said[f"sad_deploy.{name}"], (1, 3, 1, 1)) for name in ("mean", "std"))
    run_command("gradient", str(forward))
    inner = onnx.load(str(forward.with_name("forward.gradient.onnx")))
    assert [each.key for each in inner.metadata_props] == ["sad_deploy.of"]
    want_logits, want = run_graph(inner, x=((x - mean) / std).astype(np.float32))
    logits, gradient = run_graph(graph, x=x)
    np.testing.assert_allclose(logits, want_logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, want / std, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "method", ["saliency --at relu_1", "gradcam", "integrated --steps 3", "smoothgrad --samples 2"]
)
def test_each_method_takes_mean_and_std(forward: Path, method: str) -> None:
    """What is written is compared with the classifier on what they make of the images."""
    run_command(
        "gradient", str(forward), "--mean", "0.5,0.4,0.3", "--std", "0.2,0.3,0.4", "--method", *method.split()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [("--mean 1,2,3", "mean and std come together"), ("--resize 8", "--resize 8 leaves less than the 16×16")],
)
def test_what_does_not_fit_the_classifier_leaves_no_file(forward: Path, options: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_command("gradient", str(forward), *options.split())
    assert not forward.with_name("forward.gradient.onnx").exists()


@pytest.fixture
def two_pass_file(tmp_path: Path) -> Path:
    path = tmp_path / "file.onnx"
    onnx.save(two_pass(forward_onnx(small_cnn()), eta=0.5), str(path))
    return path


@pytest.mark.parametrize("way", ["plain", "constant", "exact"])
def test_a_way_through_a_two_pass_file(two_pass_file: Path, way: str) -> None:
    run_command("gradient", str(two_pass_file), "--way", way, "--of", "loss")
    graph = onnx.load(str(two_pass_file.with_name("file.gradient.onnx")))
    assert [value.name for value in graph.graph.input] == ["image", "label"]
    assert [value.name for value in graph.graph.output] == ["logits", "gradient"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--way", "constant"), "no loss 'largest'; there are loss, cotangent"),
        (("--way", "exact", "--of", "loss", "--at", "last"), "--at: not with --way"),
        (
            (
                "--way",
                "exact",
                "--of",
                "loss",
                "--method",
                "gradcam",
                "--mean",
                "0.5",
                "--conv-gradient",
                "conv",
            ),
            "--method, --mean, --conv-gradient: not with --way",
        ),
    ],
)
def test_what_does_not_go_with_a_way_is_said(
    two_pass_file: Path, words: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        run_command("gradient", str(two_pass_file), *words)
    assert [path.name for path in two_pass_file.parent.iterdir()] == ["file.onnx"]


def test_a_classifier_has_no_second_pass(forward: Path) -> None:
    with pytest.raises(UserError, match="this is no two-pass graph"):
        run_command("gradient", str(forward), "--way", "constant", "--of", "loss")
