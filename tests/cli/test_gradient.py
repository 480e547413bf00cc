from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

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
