"""``sad-deploy defend`` of a bare forward graph, and wrong uses of it and of ``export``."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from sad_deploy.cli import app, main
from sad_export import GraphOptions
from sad_export.graph.write import save_graph
from sad_export.loading import load_classifier
from sad_export.precision import lower
from sad_export.two_pass import Defence, defended
from sad_runtime.errors import UserError
from tests.support.command_line import run_command
from tests.support.models import forward_onnx, small_cnn


@pytest.fixture(scope="module")
def forward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forward") / "forward.onnx"
    onnx.save(forward_onnx(small_cnn()), str(path))
    return path


def test_a_bare_graph_becomes_a_verified_two_pass_graph_and_an_engine(forward: Path, tmp_path: Path) -> None:
    out = tmp_path / "defended.onnx"
    printed = run_command(
        "defend", str(forward), "--eta", "0.05", "--mean", ".5,.5,.5", "--std", ".25,.25,.25", "--trt",
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
    printed = run_command(
        "defend", str(forward), "--eta", "0.05", "--images", str(tmp_path / "images"), "--out", str(out)
    )
    assert re.search(r"images\W+3\W", printed)
    assert out.is_file()


def test_weights_in_a_file_of_their_own_are_taken_in(tmp_path: Path) -> None:
    """PyTorch's exporter writes them so by default."""
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "forward.onnx"
    onnx.save(
        forward_onnx(small_cnn()), str(source), save_as_external_data=True, location="w", size_threshold=1024
    )
    out = tmp_path / "out.onnx"
    run_command("defend", str(source), "--eta", "0.05", "--out", str(out))
    (tmp_path / "in" / "w").unlink()
    onnx.checker.check_model(str(out), full_check=True)


def test_an_engine_of_an_earlier_graph_is_pointed_out(
    forward: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "d.onnx"
    run_command("defend", str(forward), "--eta", "0.05", "--trt", "--flavor", "rtx", "--out", str(out))
    result = CliRunner().invoke(
        app, ["defend", str(forward), "--eta", "0.5", "--out", str(out)], standalone_mode=False
    )
    assert result.exception is None
    told = (result.stderr + capfd.readouterr().err).replace("\n", "")
    assert "d.rtx.plan is of an earlier graph" in told


def test_a_fixed_batch_is_made_dynamic(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    graph = forward_onnx(small_cnn())
    for value in (graph.graph.input[0], graph.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(graph, str(tmp_path / "f.onnx"))
    run_command("defend", str(tmp_path / "f.onnx"), "--eta", "0.1")
    made = onnx.load(str(tmp_path / "f.sad.onnx")).graph
    assert [v.type.tensor_type.shape.dim[0].dim_param for v in (*made.input, *made.output)] == ["N"] * 4


@pytest.mark.parametrize(
    ("size", "message"), [("0", "takes a side or"), ("a", "takes a side"), ("1,2,3", "takes")]
)
def test_an_image_size_that_is_none_is_refused(size: str, message: str, forward: Path) -> None:
    for command in (["defend", "--eta", "0.1"], ["gradient"]):
        with pytest.raises(UserError, match=message):
            run_command(command[0], str(forward), "--image-size", size, *command[1:])


TRT = ("{forward}", "--eta", "0.1", "--trt", "--flavor", "rtx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{forward}", "--eta", "0.1", "--mean", "a,b,c", "--std", "1,1,1"], "comma-separated numbers"),
        (["{forward}", "--eta", "0.1", "--batch", "8"], "MIN:BEST:MAX"),
        (["{forward}", "--eta", "0.1", "--batch", "8:4:2"], "must ascend"),
        (["{forward}", "--eta", "0.1", "--trt", "--target", "cpu"], "portable graph"),
        (["{forward}", "--eta", "0.1", "--out", "{forward}"], "is the graph that is read"),
        (
            ["{forward}", "--eta", "0.1", "--target", "cpu", "--precision", "fp16"],
            "is for fp32 and int8, not fp16",
        ),
        (["{forward}", "--eta", "0.1", "--target", "cpu", "--saliency-precision", "bf16"], "not fp32-bf16"),
        (["{forward}", "--eta", "0.1", "--ranges", "entropy", "--precision", "fp16"], "and fp16 has none"),
        (["{forward}", "--eta", "0.1", "--precision", "int8"], "the ranges of int8 are those of real images"),
        (
            ["{forward}", "--eta", "0.1", "--flavor", "rtx", "--batch", "1:2:4"],
            "--flavor, --batch: only with",
        ),
        (["{forward}", "--eta", "0.1", "--tf32", "--gpu-target", "sm_89"], "--gpu-target, --tf32: only with"),
        (
            ["{forward}", "--eta", "0.1", "--optimization-level", "0", "--verbose"],
            "--optimization-level, --verbose: only with --trt",
        ),
        (
            ["absent", "--eta", "1", "--hardware-compatibility", "ampere+", "--no-engine-cache"],
            "--hardware-compatibility, --no-engine-cache: only",
        ),
        ([*TRT, "--gpu-target", "sm_90"], "knows no GPU target sm_90"),
        ([*TRT, "--hardware-compatibility", "ampere+"], "no hardware compatibility"),
        (["absent.onnx", "--eta", "0.1"], "no ONNX file"),
        (["absent", "--eta", "0.1"], "no ONNX file"),
        ([".", "--eta", "0.1"], "is a folder; a classifier is an ONNX file"),
        (["", "--eta", "0.1"], "is a folder; a classifier is an ONNX file"),
        (["/", "--eta", "0.1"], "is a folder; a classifier is an ONNX file"),
        (["{forward}", "--eta", "0.1", "--out", "."], "is a folder; --out names a file"),
    ],
)
def test_wrong_use_is_refused_and_nothing_is_written(
    forward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        run_command("defend", *(argument.format(forward=forward) for argument in arguments))
    assert message in caught.value.message
    assert list(tmp_path.iterdir()) == []
    assert [p.name for p in forward.parent.iterdir()] == ["forward.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["defend", "f.onnx"], "sad-deploy defend needs --eta", "for example sad-deploy defend"),
        (["export", "b", "--eta", "1"], "export has no option --eta", "an option of calibrate and defend"),
        (["export", "b", "--precison", "fp16"], "has no option --precison", "did you mean --precision?"),
        (["export", "--bundle", "b"], "has no option --bundle", "it is no option but an argument"),
        (["export", "--target", "gpu"], "--target: 'gpu' is not one of", "see sad-deploy export --help"),
        (["exprot"], "there is no command exprot", "did you mean export?"),
        (["infer"], "sad-deploy infer needs SOURCE", "for example sad-deploy infer photos/"),
    ],
)
def test_a_wrong_command_line_is_an_error_line_and_a_hint(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
    hint: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["sad-deploy", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    error, advice = capfd.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert advice.startswith("hint: ")
    assert hint in advice


def test_what_the_readme_of_earlier_versions_shows_still_works_with_a_warning(
    forward: Path, tmp_path: Path
) -> None:
    out = tmp_path / "d.onnx"
    arguments = [str(forward), "--eta", "0.05", "--dgrad", "conv", "--target", "portable", "--out", str(out)]
    result = CliRunner().invoke(app, ["export", *arguments], standalone_mode=False)
    assert result.exception is None
    assert [line for line in result.stderr.splitlines() if line.startswith("warning: ")][:2] == [
        "warning: for a bare graph, export is now: sad-deploy defend FORWARD.onnx",
        "warning: --dgrad is now --conv-gradient",
    ]
    assert "ConvTranspose" not in {node.op_type for node in onnx.load(str(out)).graph.node}


def test_json_is_what_was_written(forward: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.onnx"
    shown = json.loads(run_command("defend", str(forward), "--eta", "0.05", "--json", "--out", str(out)))
    assert shown["graph"] == str(out)
    assert shown["bytes"] == out.stat().st_size
    assert shown["verification"]["slope_error"] < 0.05
    assert (shown["engine"], shown["shortfalls"]) == (None, [])


def test_a_defended_graph_is_a_classifier_too(forward: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    run_command("defend", str(forward), "--eta", "0.05", "--out", str(once))
    with pytest.raises(UserError, match=r"3 outputs .*--logits"):
        run_command("defend", str(once), "--eta", "0.05", "--out", str(twice))
    assert "slope error" in run_command(
        "defend", str(once), "--eta", "0.05", "--logits", "logits", "--out", str(twice)
    )


def test_verbose_shows_tensorrts_log(forward: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "o.onnx")]
    arguments = [
        "defend",
        str(forward),
        "--eta",
        "0.1",
        "--trt",
        "--flavor",
        "rtx",
        "--no-engine-cache",
        *out,
    ]
    for verbose in (False, True):
        result = CliRunner().invoke(app, arguments + ["--verbose"] * verbose, standalone_mode=False)
        assert result.exception is None
        assert ("TensorRT info: Detected 1 inputs" in result.stderr) is verbose


def test_a_bare_graph_in_lower_precision_is_compared_with_its_float32_form(
    forward: Path, tmp_path: Path
) -> None:
    source = tmp_path / "f.onnx"
    shutil.copy(forward, source)
    printed = run_command(
        "defend", str(source), "--eta", "0.05", "--precision", "fp16", "--trt", "--flavor", "rtx"
    )
    assert "slope error" in printed
    assert "against its float32 form" in " ".join(printed.split())  # a long path wraps the title
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "f.onnx",
        "f.sad.fp16.onnx",
        "f.sad.fp16.rtx.json",
        "f.sad.fp16.rtx.plan",
    ]


def test_a_classifier_in_half_precision_is_defended_in_float32(
    forward: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The first pass of a graph in fp16, cut out."""
    lowered = tmp_path_factory.mktemp("lowered") / "two_pass.onnx"
    half = GraphOptions("fp16")
    graph = defended(load_classifier(forward), Defence(0.05), half.lowering)
    save_graph(lower(graph, half.variant).graph, lowered)
    source = tmp_path / "half.onnx"
    onnx.utils.extract_model(str(lowered), str(source), ["image"], ["plain_logits"])
    for precision, name in (("fp32", "half.sad.onnx"), ("fp16", "half.sad.fp16.onnx")):
        run_command("defend", str(source), "--eta", "0.05", "--precision", precision)
        kinds = {tensor.data_type for tensor in onnx.load(str(tmp_path / name)).graph.initializer}
        assert (onnx.TensorProto.FLOAT16 in kinds) == (precision == "fp16")
