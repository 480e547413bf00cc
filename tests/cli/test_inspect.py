from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sad_runtime.bundle import Bundle
from sad_runtime.manifest import Engine
from sad_runtime.tensorrt import Flavor
from tests.support.command_line import exit_code
from tests.support.fake_gpu import write_engine
from tests.support.tiny_bundle import changed, linear_model, write_tiny_bundle


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tiny_bundle(tmp_path / "sad-model", linear_model(classes=30))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    return exit_code(monkeypatch, "inspect", *arguments)


def test_manifest_is_a_table_on_stdout(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch) == 0
    out = capfd.readouterr().out
    for part in (
        "tests.linear",
        "30: class 0, class 1,",
        "and 20 more",
        "3×8×8 RGB",
        "shorter side 8 (bilinear), crop 8×8",
        "0.4, 0.5, 0.6",
        "0.2, 0.25, 0.3",
        "clean accuracy before",
        "0.75",
        "label agreement",
        "100 %",
        "model.onnx",
        "unchanged",
        "schema 1",
    ):
        assert part in out
    assert "CHANGED" not in out


def test_the_sweep_is_its_table_and_percents_are_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"eta": eta, "clean_percent": percent} for eta, percent in ((0.1, 99.0), (0.5, 97.25))]
    measured = {"images": 100, "split": "held-out", "against": "labels", "before_percent": 98.5}
    sweep = {**measured, "chosen": "sweep", "max_drop_points": 2.0, "within_max_drop": True, "rows": rows}
    accuracy = {**measured, "after_percent": 97.25}
    with changed(Path("sad-model"), calibration={"clean_accuracy": accuracy, "eta": sweep}):
        pass
    assert run(monkeypatch) == 0
    shown = " ".join(re.sub(r"[^\w.%+-]+", " ", capfd.readouterr().out).split())
    assert "98.50 % before 97.25 % with the defence -1.25 points 100 held-out images against labels" in shown
    assert "0.1 99.00 +0.50" in shown
    eta = Bundle.open("sad-model").manifest.defence.eta
    assert ("0.5 97.25 -1.25 chosen" in shown) is (eta == 0.5)


def test_json_is_the_manifest_and_the_state_of_the_files(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "sad-model", "--json") == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["manifest"] == json.loads(Path("sad-model/manifest.json").read_text())
    size = Path("sad-model/model.onnx").stat().st_size
    assert shown["files"]["model.onnx"] == {"bytes": size, "unchanged": True}


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_changed_file_is_marked_and_exit_code_2(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    weights = Path("sad-model/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert run(monkeypatch, "sad-model", *arguments) == 2
    written = capfd.readouterr()
    assert ("CHANGED" if not arguments else '"unchanged": false') in written.out
    assert "changed since the bundle was written: weights.safetensors" in written.err


def test_folder_that_is_no_bundle_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    assert run(monkeypatch, "empty") == 2
    written = capfd.readouterr()
    assert "error: empty has no manifest.json" in written.err
    assert "hint: make one with: sad-deploy calibrate" in written.err
    assert written.out == ""


def test_names_with_markup_are_shown_as_they_are(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = Bundle.open("sad-model")
    text = Path("sad-model/manifest.json").read_text()
    Path("sad-model/manifest.json").write_text(text.replace('"class 0"', '"[red]class[/red] 0"'))
    assert bundle.manifest.classes[0] == "class 0"
    assert run(monkeypatch) == 0
    assert "[red]class[/red] 0" in capfd.readouterr().out


def test_engines_are_shown_with_what_they_were_built_for(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    engines = tuple(
        Engine(f"engines/{name}.plan", f"engines/{name}.json", "model.onnx", "rtx", "fp32") for name in "ed"
    )
    with changed(Path("sad-model"), engines=engines) as draft:
        whole = write_engine(draft.path("engines/e.plan").parent, Flavor.RTX, tf32=True)
        damaged = draft.path("engines/d.json")
        damaged.write_text("{}")
        damaged.with_suffix(".plan").write_bytes(whole.read_bytes())
    monkeypatch.setenv("COLUMNS", "250")
    assert run(monkeypatch) == 0
    shown = capfd.readouterr().out
    assert "for sm_75, batch 1 to 4 (best 2), TF32 on, optimisation level 3" in shown
    assert "engines/d.json has schema None" in shown


def test_bundle_without_a_graph_says_how_to_make_one(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_tiny_bundle(here / "sad-model", linear_model(), exported=False)
    assert run(monkeypatch) == 0
    assert "none yet: sad-deploy export" in capfd.readouterr().out
