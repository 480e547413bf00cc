from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from sad_deploy.cli import main
from sad_runtime.bare_graph import stated_by
from sad_runtime.bundle import Bundle
from sad_runtime.devices import cuda_devices
from sad_runtime.graph_metadata import graph_metadata
from sad_runtime.manifest import Engine
from sad_runtime.tensorrt import Flavor
from tests.support import fake_gpu
from tests.support.tiny_bundle import changed, linear_model, write_tiny_bundle

MAIN = [sys.executable, "-c", "from sad_deploy.cli import main; main()"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a bundle and a folder of six images, two of them below it."""
    write_tiny_bundle(tmp_path / "sad-model", linear_model())
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.JPG", "c.bmp", "d.webp", "sub/a.png", "sub/e.tif"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sad-deploy", "infer", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def rows(path: str = "predictions.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_folder_becomes_one_row_an_image(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "images") == 0
    assert [row["path"] for row in rows()] == [
        f"images/{name}" for name in ("a.JPG", "b.png", "c.bmp", "d.webp", "sub/a.png", "sub/e.tif")
    ]
    for row in rows():
        assert row["plain_class"] == f"class {row['plain_label']}"
        assert row["size"] == Path(row["path"]).stat().st_size
        assert row["class"] == f"class {row['label']}"
        assert len(row["top_k"]) == 4
        assert row["top_k"][0] == {key: row[key] for key in ("label", "class", "probability")}
        assert sum(item["probability"] for item in row["top_k"]) == pytest.approx(1)
    written = capfd.readouterr()
    assert written.out == ""
    assert "6 images in" in written.err
    assert "results: predictions.jsonl" in written.err
    counts = Counter(row["class"] for row in rows())
    assert all(f"{name}: {count}" in written.err for name, count in counts.items())


def test_dash_writes_rows_and_nothing_else_to_stdout(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "images/sub", "--out", "-", "--top-k", "1") == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["path"] for line in lines] == ["images/sub/a.png", "images/sub/e.tif"]
    assert [len(line["top_k"]) for line in lines] == [1, 1]
    assert not Path("predictions.jsonl").exists()


def test_json_prints_the_runs_counts_and_leaves_the_rows_as_they_are(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("images/empty.png").touch()
    Path("images/notes.txt").touch()
    assert run(monkeypatch, "images", "--out", "plain.jsonl") == 3
    capfd.readouterr()
    assert run(monkeypatch, "images", "--json", "--report", "page.html") == 3
    assert rows() == rows("plain.jsonl")
    found = json.loads(capfd.readouterr().out)
    classes = Counter((row["label"], row["class"]) for row in rows() if "error" not in row)
    assert {(entry["label"], entry["class"]): entry["images"] for entry in found["classes"]} == classes
    assert found["seconds"] > 0
    assert {name: value for name, value in found.items() if name not in ("classes", "seconds")} == {
        "results": "predictions.jsonl",
        "overlays": None,
        "report": "page.html",
        "images": 7,
        "failures": {"empty": 1},
        "failure_examples": {"empty": "images/empty.png: the file is empty"},
        "skipped": None,
        "skipped_failures": 0,
        "left_out": {".txt": 1},
    }
    assert run(monkeypatch, "images", "--json", "--resume") == 3
    again = json.loads(capfd.readouterr().out)
    assert (again["images"], again["skipped"], again["skipped_failures"]) == (0, 7, 1)


def test_json_does_not_go_where_the_rows_go(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "images", "--json", "--out", "-") == 2
    written = capfd.readouterr()
    assert written.out == ""
    assert "error: --json and --out - both write to standard output" in written.err


def test_bad_images_are_rows_and_exit_code_3(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("images/empty.png").touch()
    Path("images/cut.png").write_bytes(Path("images/b.png").read_bytes()[:300])
    assert run(monkeypatch, "images") == 3
    codes = {row["path"]: row["error"]["code"] for row in rows() if "error" in row}
    assert codes == {"images/cut.png": "truncated", "images/empty.png": "empty"}
    assert len(rows()) == 8
    assert "1 image failed: truncated, for example images/cut.png" in capfd.readouterr().err


def test_all_images_bad_is_exit_code_3_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("text.png").write_text("no image")
    assert run(monkeypatch, "text.png") == 3
    assert [row["error"]["code"] for row in rows()] == ["not-an-image"]


def test_overlays_mirror_the_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "images", "--saliency", "overlays") == 0
    expected = [f"overlays/{row['path'].removeprefix('images/')}.png" for row in rows()]
    assert [row["saliency"] for row in rows()] == expected
    assert sorted(map(str, Path("overlays").rglob("*.png"))) == sorted(expected)


def test_results_inside_the_input_are_not_read_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["images", "--saliency", "images/overlays", "--out", "images/out.jsonl"]
    for how in ((), ("--overwrite",)):
        assert run(monkeypatch, *arguments, *how) == 0
        assert len(rows("images/out.jsonl")) == 6


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "gztar"])
def test_files_of_other_extensions_are_counted_alike_in_folders_and_archives(
    kind: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("IMG_1.CR2", "img_2.cr2", "README", ".hidden", ".hidden.cr2"):
        (here / "images" / name).touch()
    source = "images" if kind == "folder" else shutil.make_archive("packed", kind, "images")
    assert run(monkeypatch, source) == 0
    expected = "3 files left out for not having an image's extension: 2 .cr2, 1 without extension\n"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["absent", "images/*.xyz"],
            "absent (no such file or folder), images/*.xyz (no such file or folder)",
        ),
        (["images", "--bundle", "absent"], "no bundle at absent"),
        (["images", "--backend", "rtx"], "sad-model has no rtx engine"),
        (["images", "--out", "x", "--report", "./x"], "--out and --report are both x"),
        (["images", "--out", "/"], "/ is a folder; --out names a file"),
        (["images", "--report", "images"], "images is a folder; --report names a file"),
        (["images", "--saliency", "/dev/null"], "/dev/null is not a folder; --saliency names one"),
        (["images", "--out", "sad-model/manifest.json"], "manifest.json is there already"),
        (["images", "--report", "sad-model/manifest.json"], "is not a report"),
        (["images", "--out", "images"], "images is a folder; --out names a file"),
        (["images", "--saliency", "images"], "images (results are written there)"),
        (["images", "--out", "sad-model"], "sad-model is a folder"),
        (["images", "--saliency", "images/b.png"], "images/b.png is not a folder; --saliency names one"),
        (["images", "--batch-size", "0"], "--batch-size"),
        (["images", "--backend", "tpu"], "tpu"),
        ([], "SOURCE"),
        (["images", "--format", "xlsx"], "xlsx"),
        (["images", "--shard", "3/2"], "'3/2' is not a shard"),
        (["images", "--resume", "--overwrite"], "choose one"),
        (["images", "--retry-errors"], "--retry-errors needs --resume"),
        (["images", "--backend", "cpu", "--tf32"], "the cpu backend has no TF32"),
        (["images", "--saliency-intensity", "2"], "--saliency-intensity"),
        (["images", "--out", "-", "--report", "page.html"], "--report is made from a result file"),
        (["images", "--out", "-", "--resume"], "--resume needs a file"),
        (["images", "--out", "-", "--format", "csv"], "--format csv needs a file"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert run(monkeypatch, *arguments) == 2
    written = capfd.readouterr()
    assert message in written.err
    assert "Traceback" not in written.err
    assert written.out == ""
    assert not list(here.glob("predictions.jsonl*"))


@pytest.mark.skipif(cuda_devices().count > 0, reason="what is said where there is no GPU")
def test_cuda_without_a_gpu_is_an_error_not_a_fall_back(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "images", "--backend", "cuda") == 2
    assert "the cuda backend needs an NVIDIA GPU" in capfd.readouterr().err


def test_short_gpu_memory_is_said_once_and_every_image_has_its_row(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a stand-in for a GPU, whose memory holds two images at once."""
    gpu = fake_gpu.install(monkeypatch, Flavor.RTX, free_bytes=2600)
    model = linear_model(fake_gpu.SHAPE, fake_gpu.CLASSES)
    bundle = Bundle.open(write_tiny_bundle(here / "sad-model", model))
    engine = Engine("engines/e.plan", "engines/e.json", "model.onnx", "rtx", "fp32")
    with changed(bundle.root, engines=(engine,)) as draft:
        draft.path("engines/e.plan")
        graph = bundle.manifest.files["model.onnx"]
        fake_gpu.write_engine(draft.root / "engines", Flavor.RTX, onnx_sha256=graph)
    assert run(monkeypatch, "images", "--backend", "rtx", "--saliency-stats", "--batch-size", "5") == 0
    assert capfd.readouterr().err.count("GPU memory is short: going on with batches of 2") == 1
    assert len(rows()) == len({row["path"] for row in rows()}) == 6
    assert gpu.cuda.live == {}


def test_changed_graph_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = Bundle.open("sad-model").file("model.onnx")
    graph.write_bytes(graph.read_bytes() + b"\0")
    assert run(monkeypatch, "images") == 2
    assert "was changed since the bundle was written" in capfd.readouterr().err


def test_backend_and_the_reason_for_it_are_said(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "images", "--backend", "cpu") == 0
    err = capfd.readouterr().err
    assert "backend cpu (asked for; not verified here" in err
    assert "hint: onnxruntime's CPU has a faster form of this graph: sad-deploy export sad-model" in err


def test_a_graph_that_was_written_for_the_cpu_needs_no_hint(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = Bundle.open("sad-model").manifest
    graphs = tuple(dataclasses.replace(graph, target="cpu") for graph in manifest.graphs)
    with changed(Path("sad-model"), graphs=graphs):
        pass
    assert run(monkeypatch, "images", "--backend", "cpu") == 0
    assert "hint:" not in capfd.readouterr().err


def many(count: int) -> None:
    folder = Path("many")
    folder.mkdir()
    data = Path("images/b.png").read_bytes()
    for i in range(count):
        (folder / f"{i:05}.png").write_bytes(data)


def test_reader_that_goes_away_is_a_quiet_end(here: Path) -> None:
    many(2000)
    command = [*MAIN, "infer", "many", "--batch-size", "8", "--out", "-"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline())["path"] == "many/00000.png"
    process.stdout.close()
    text = process.stderr.read()
    assert process.wait(timeout=60) == 0
    assert text.splitlines()[2:] == []  # beyond the backend and the hint


@pytest.mark.parametrize("table", ["csv", "parquet"])
def test_a_table_by_its_ending_and_with_all_columns(
    here: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    if table == "parquet":
        pytest.importorskip("pyarrow")
    more = ("--logits", "--saliency-stats", "--top-k", "2")
    assert run(monkeypatch, "images", "--out", f"t.{table}", *more) == 0
    assert run(monkeypatch, "images", "--out", "t.jsonl", *more) == 0
    if table == "csv":
        with Path("t.csv").open(newline="", encoding="utf-8") as file:
            for read, row in zip(csv.DictReader(file), rows("t.jsonl"), strict=True):
                assert [float(read[f"logit_{k}"]) for k in range(4)] == row["logits"]
                assert (read["label"], read["class_2"]) == (str(row["label"]), row["top_k"][1]["class"])
                assert float(read["saliency_l2"]) == row["saliency_l2"]
                assert read["plain_class"] == row["plain_class"]
    else:
        import pyarrow.parquet

        table_rows = pyarrow.parquet.read_table("t.parquet").to_pylist()
        for read, row in zip(table_rows, rows("t.jsonl"), strict=True):
            assert {name: read[name] for name in row} == row | {"logits": pytest.approx(row["logits"])}


def test_the_default_name_has_the_formats_ending(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "images", "--format", "csv") == 0
    assert sorted(path.name for path in here.glob("pred*")) == ["predictions.csv", "predictions.csv.run.json"]


def test_a_report_is_made_of_all_rows(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("images/empty.png").touch()
    assert run(monkeypatch, "images", "--out", "t.csv", "--report", "page.html") == 3
    text = Path("page.html").read_text(encoding="utf-8")
    assert all(name in text for name in ("a.JPG", "e.tif", "empty.png"))
    assert sorted(map(str, Path().glob("*.html*"))) == ["page.html"]


def test_shards_are_disjoint_and_complete(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in (1, 2, 3, 4):
        assert run(monkeypatch, "images", "--shard", f"{i}/4", "--out", f"{i}.jsonl") == 0
    parts = [[row["path"] for row in rows(f"{i}.jsonl")] for i in (1, 2, 3, 4)]
    assert run(monkeypatch, "images") == 0
    assert [len(part) for part in parts] == [2, 2, 1, 1]
    assert sorted(itertools.chain(*parts)) == sorted(row["path"] for row in rows())


def test_archives_lists_and_standard_input_are_sources(here: Path) -> None:
    with zipfile.ZipFile("photos.zip", "w") as archive:
        archive.write("images/b.png", "in/b.png")
    Path("list.txt").write_text("images/c.bmp\nabsent.png\n")
    command = [*MAIN, "infer", "photos.zip", "@list.txt", "-", "--out", "-"]
    done = subprocess.run(command, input="images/d.webp\n", capture_output=True, text=True, check=False)
    read = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in read] == [
        *("photos.zip/in/b.png", "images/c.bmp", "absent.png", "images/d.webp")
    ]
    assert [row.get("error", {}).get("code") for row in read] == [None, None, "not-found", None]
    assert done.returncode == 3


def test_duplicated_class_names_are_counted_apart(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with changed(Path("sad-model"), classes=("crane",) * 4):
        pass
    assert run(monkeypatch, "images") == 0
    counts = Counter(row["label"] for row in rows())
    text = capfd.readouterr().err
    shown = [f"crane (label {label}): {count}" for label, count in counts.items()]
    assert all(part in text for part in (shown if len(counts) > 1 else [f"crane: {len(rows())}"]))


def test_progress_is_silent_where_there_is_no_terminal(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "images") == 0
    assert len(capfd.readouterr().err.splitlines()) == 5  # with the hint


def test_progress_on_a_terminal_counts_to_the_total(here: Path) -> None:
    many(2000)
    controller, terminal = os.openpty()
    process = subprocess.Popen(
        [*MAIN, "infer", "many", "--batch-size", "8", "--out", "-"],
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal says that its other end was closed
        while part := os.read(controller, 4096):
            shown += part
    os.close(controller)
    assert process.wait(timeout=60) == 0
    assert b"/2000" in shown
    assert b"/s" in shown


def test_name_that_is_not_utf8_goes_through(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"images/sub/\xff.png")
    Path(name).write_bytes(Path("images/b.png").read_bytes())
    Path(f"{name}.jpg").touch()
    assert run(monkeypatch, "images/sub", "--saliency", "overlays") == 3
    assert name in [row["path"] for row in rows()]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom sad_deploy.cli import main\nsys.argv = ['sad-deploy', 'infer', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('loaded', *sys.modules, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--saliency" in result.stdout
    loaded = set(result.stderr.split("loaded", 1)[1].split())
    assert not {"torch", "onnx", "onnxruntime", "numpy", "PIL", "sad_runtime.pipeline"} & loaded


def test_command_uses_neither_torch_nor_onnx(here: Path) -> None:
    code = (
        "import sys\nfrom sad_deploy.cli import main\n"
        "sys.argv = ['sad-deploy', 'infer', 'images', '--saliency', 'overlays']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0\nprint(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "onnxruntime" in loaded
    assert not {"torch", "torchvision", "onnx", "onnx_ir", "sad_export"} & loaded


def test_a_bare_graph_is_the_first_source_or_the_bundle(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = Bundle.open("sad-model").manifest
    space, defence = manifest.input_space, manifest.defence
    graph = onnx.load("sad-model/model.onnx")
    stated = graph_metadata(
        eta=defence.eta, normalization=defence.normalization, clip=None, mean=space.mean, std=space.std
    )
    onnx.helper.set_model_props(graph, stated | stated_by(manifest))
    onnx.save(graph, "moved.onnx")
    rows = []
    for words in (["images"], ["moved.onnx", "images"], ["images", "--bundle", "moved.onnx"]):
        assert run(monkeypatch, *words, "--backend", "cpu", "--overwrite") == 0
        rows.append(Path("predictions.jsonl").read_text())
    assert rows[0] == rows[1] == rows[2]
    capfd.readouterr()
    assert run(monkeypatch, "moved.onnx") == 2
    assert "what should moved.onnx classify?" in capfd.readouterr().err
    assert run(monkeypatch, "images", "--resize", "9", "--overwrite") == 2
    assert "--resize: only for a bare graph" in capfd.readouterr().err
