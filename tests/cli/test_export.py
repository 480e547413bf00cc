"""``sad-deploy export`` of a bare forward graph, and its wrong uses."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import typer
from models import forward_onnx, small_cnn
from typer.testing import CliRunner

from sad_deploy.cli.export import export
from sad_runtime.errors import UserError

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(export)


def run(*arguments: str) -> str:
    """stdout of the command; what it raises is raised."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False, standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.stdout


@pytest.fixture(scope="module")
def forward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forward") / "forward.onnx"
    onnx.save(forward_onnx(small_cnn()), str(path))
    return path


def test_a_bare_graph_becomes_a_verified_two_pass_graph_and_an_engine(forward: Path, tmp_path: Path) -> None:
    out = tmp_path / "defended.onnx"
    printed = run(
        str(forward), "--eta", "0.05", "--mean", ".5,.5,.5", "--std", ".25,.25,.25", "--trt",
        "--flavor", "rtx", "--out", str(out),
    )  # fmt: skip
    assert "slope error" in printed
    assert [o.name for o in onnx.load(str(out)).graph.output] == ["logits", "saliency", "plain_logits"]
    assert json.loads((tmp_path / "defended.rtx.json").read_text())["flavor"] == "rtx"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "defended.onnx",
        "defended.rtx.json",
        "defended.rtx.plan",
    ]


def test_a_bare_graph_is_verified_on_a_folder_of_images(forward: Path, tmp_path: Path) -> None:
    import skimage.data
    from PIL import Image

    (tmp_path / "images").mkdir()
    for name in ("astronaut", "coffee", "chelsea"):
        Image.fromarray(getattr(skimage.data, name)()).save(tmp_path / "images" / f"{name}.png")
    out = tmp_path / "d.onnx"
    printed = run(str(forward), "--eta", "0.05", "--images", str(tmp_path / "images"), "--out", str(out))
    assert "3" in printed
    assert out.is_file()


def test_weights_in_a_file_of_their_own_are_taken_in(tmp_path: Path) -> None:
    """PyTorch's exporter writes them so by default."""
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "forward.onnx"
    onnx.save(
        forward_onnx(small_cnn()), str(source), save_as_external_data=True, location="w", size_threshold=1024
    )
    out = tmp_path / "out.onnx"
    run(str(source), "--eta", "0.05", "--out", str(out))
    (tmp_path / "in" / "w").unlink()
    onnx.checker.check_model(str(out), full_check=True)


def test_an_engine_of_an_earlier_graph_is_pointed_out(
    forward: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "d.onnx"
    run(str(forward), "--eta", "0.05", "--trt", "--flavor", "rtx", "--out", str(out))
    result = CliRunner().invoke(app, [str(forward), "--eta", "0.5", "--out", str(out)], standalone_mode=False)
    assert result.exception is None
    told = (result.stderr + capfd.readouterr().err).replace("\n", "")
    assert "d.rtx.plan is of an earlier graph" in told


def test_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    graph = forward_onnx(small_cnn())
    for value in (graph.graph.input[0], graph.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(graph, str(tmp_path / "f.onnx"))
    with pytest.raises(UserError, match="its batch is fixed to 2"):
        run(str(tmp_path / "f.onnx"), "--eta", "0.1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{forward}"], "needs --eta"),
        (["{forward}", "--eta", "0.1", "--mean", "a,b,c", "--std", "1,1,1"], "comma-separated numbers"),
        (["{forward}", "--eta", "0.1", "--batch", "8"], "MIN:BEST:MAX"),
        (["{forward}", "--eta", "0.1", "--batch", "8:4:2"], "must ascend"),
        (["{forward}", "--eta", "0.1", "--trt", "--target", "cpu"], "portable graph"),
        (["{forward}", "--eta", "0.1", "--out", "{forward}"], "is the graph that is read"),
        (["absent.onnx", "--eta", "0.1"], "no ONNX file"),
        (["absent", "--eta", "0.1"], "only go with a bare forward.onnx"),
        (["absent"], "absent"),
    ],
)
def test_wrong_use_is_refused_and_nothing_is_written(
    forward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        run(*(argument.format(forward=forward) for argument in arguments))
    assert message in caught.value.message
    assert list(tmp_path.iterdir()) == []
    assert [p.name for p in forward.parent.iterdir()] == ["forward.onnx"]
