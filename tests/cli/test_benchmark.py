from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sad_deploy.cli import main
from sad_runtime.devices import cuda_devices
from tests.support.tiny_bundle import linear_model, write_tiny_bundle

QUICK = ["--seconds", "0", "--backend", "cpu", "--batch", "2"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a bundle and a folder of three images."""
    write_tiny_bundle(tmp_path / "sad-model", linear_model())
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sad-deploy", "benchmark", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def figures(path: str = "benchmark.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return found


def test_all_that_runs_here_is_measured_by_default(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--seconds", "0") == 0
    found = figures()
    assert [run["batch_size"] for run in found["runs"] if run["backend"] == "cpu"] == [1, 8, 32]
    for entry in found["runs"]:
        if entry["backend"] in ("cpu", "cuda"):
            assert entry["single_pass"]["rounds"] == 3
            assert entry["latency_ratio"] > 0
    written = capfd.readouterr()
    assert "32 made-up photographs, JPEG 500×375" in written.out
    for title in ("decode only", "model only", "end to end: files in, rows out"):
        assert title in written.out
    assert max(map(len, written.out.split("not measured")[0].splitlines())) <= 100
    assert "figures: benchmark.json" in written.err
    assert "cpu fp32, batch 32: end to end" in written.err
    if not cuda_devices().count:
        assert "not measured: cuda fp32: the cuda backend needs an NVIDIA GPU" in written.out
    assert sorted(path.name for path in here.iterdir()) == ["benchmark.json", "images", "sad-model"]


def test_json_on_stdout_is_what_the_file_holds(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "images", "--json", *QUICK) == 0
    written = capfd.readouterr()
    assert json.loads(written.out) == figures()
    assert "figures: benchmark.json" in written.err


def test_sources_are_those_of_infer(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "images/[ab].png", "images/c.png", "--images", "2", *QUICK) == 0
    assert figures()["images"] == {"made_up": False, "used": 2, "failed": {}, "failed_example": None}
    assert "2 images" in capfd.readouterr().out


def test_bad_images_are_left_out_and_exit_code_3(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("images/d.png").touch()
    assert run(monkeypatch, "images", *QUICK) == 3
    assert figures()["images"]["failed"] == {"empty": 1}
    assert "images left out: 1 empty, for example images/d.png" in capfd.readouterr().err


def test_the_plot_is_written_beside_the_figures(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra benchmark")
    assert run(monkeypatch, "images", "--out", "f.json", "--plot", "plot.png", *QUICK) == 0
    with Image.open("plot.png") as image:
        assert image.size == (1200, 700)
    assert figures("f.json")["options"]["batch_sizes"] == [2]


def test_a_base_install_measures_all_but_the_single_pass_and_says_so(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> importlib.machinery.ModuleSpec | None:
        return None if name in ("onnx", "matplotlib") else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert run(monkeypatch, "images", *QUICK) == 0
    assert figures()["runs"][0]["single_pass"] is None
    written = capfd.readouterr()
    assert "needs onnx, which is not installed; it is left out" in written.err
    assert 'hint: pip install "sad-deploy[benchmark]"' in written.err
    (row,) = [line for line in written.out.splitlines() if "│ 1      │" in line]
    assert row.count("–") == 6
    Path("benchmark.json").unlink()
    assert run(monkeypatch, "images", "--plot", "p.png", *QUICK) == 2
    assert "error: a plot needs matplotlib, which is not installed" in capfd.readouterr().err
    assert not Path("benchmark.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "absent"], "no bundle at absent"),
        (["absent.jpg"], "nothing to read from absent.jpg"),
        (["text.png"], "none of the 1 images can be decoded, for example text.png (not an image"),
        (["--precision", "fp16"], "sad-model has no fp16 graph, only fp32"),
        (["--backend", "rtx"], "sad-model has no rtx engine"),
        (["--backend", "tpu"], "--backend: 'tpu' is not one of"),
        (["--batch", "0"], "--batch: "),
        (["--seconds", "nan"], "--seconds"),
        (["--seconds", "inf"], "seconds must be a finite number of at least 0, got inf"),
        (["--out", "text.png/f.json"], "cannot write text.png/f.json: Not a directory"),
        (["--out", "images"], "images is a folder; --out names a file"),
        (["--plot", "text.png/p.svg"], "cannot write text.png/p.svg: Not a directory"),
        (["--plot", "p.jpg"], "its ending must be one of .png, .svg, .pdf"),
    ],
)
def test_bad_input_is_exit_code_2_and_nothing_is_written(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    if "--plot" in arguments:
        pytest.importorskip("matplotlib", reason="needs the extra benchmark")
    Path("text.png").write_text("no image")
    before = sorted(here.rglob("*"))
    assert run(monkeypatch, *arguments) == 2
    written = capfd.readouterr()
    assert message in " ".join(written.err.replace("│", " ").split())
    assert written.out == ""
    assert sorted(here.rglob("*")) == before


@pytest.mark.skipif(cuda_devices().count > 0, reason="what is said where there is no GPU")
def test_a_backend_that_was_asked_for_and_cannot_run_is_exit_code_2(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--backend", "cpu", "--backend", "cuda") == 2
    assert "error: the cuda backend needs an NVIDIA GPU: " in capfd.readouterr().err
    assert not Path("benchmark.json").exists()
