"""``examples/reproduce_paper.py``: everything is made once, and the paper's figures lie beside ours."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from sad_deploy.models import build_model

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reproduce_paper", EXAMPLES / "reproduce_paper.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reproduce_paper"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def plan(example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", ["x", "--out", str(tmp_path), "--quick", "--processes", "1"])
    return example.parsed()[0]


@pytest.mark.slow
def test_section_4_6_from_the_networks_to_the_table(
    example: ModuleType, plan: object, tmp_path: Path
) -> None:
    plan = dataclasses.replace(plan, images=8, budget="1s")  # type: ignore[type-var]
    sad = example.calibrated(plan, "Nat", 0.3)
    lines = {"s46": list(example.statistics_alone(plan, "s46", sad, sad))}
    example.write(plan, lines)
    text = (tmp_path / "tables.md").read_text()
    assert "| Nat |" in text and "| Nat, recalibrated |" in text and "worst case" in text
    record = json.loads((tmp_path / "tables.json").read_text())
    rows = record["tables"]["s46"]
    assert [row["name"] for row in rows] == ["Nat", "Nat, recalibrated"]
    for row in rows:
        assert row["worst_case"]["count"] <= row["attacks"]["StrongPGD"]["accuracy"]["count"]
    assert record["conditions"]["epsilon"] == "0.1" and record["conditions"]["budget"] == "1s"
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = list(example.statistics_alone(plan, "s46", sad, sad))
    assert [row.found for row in again] == [row.found for row in lines["s46"]]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert kept == made

    graph = example.uncalibrated(plan, "Nat", 0.0, sad)
    x = np.random.default_rng(0).random((2, 1, 16, 16), dtype=np.float32)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    plain, both = session.run(["plain_logits", "logits"], {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(plain, both, atol=1e-4)  # η = 0
    assert np.abs(example.saliency(graph, x)).max() > 0


def test_the_papers_row_of_a_method_is_that_of_the_same_network(example: ModuleType, plan: object) -> None:
    row = example.line(plan, "1", "SAD", {}).reported
    assert (row.network, row.values[2]) == ("ResNet-18, CIFAR-10", 52.61)
    wide = dataclasses.replace(plan, model="cifar-wrn32-10")  # type: ignore[type-var]
    assert example.line(wide, "1", "SAD", {}).reported.values[2] == 53.47
    assert example.line(plan, "1", "Nat", {}).reported is None


def test_lengths_of_tables_are_their_columns(example: ModuleType, plan: object) -> None:
    share = {"percent": 50.0, "images": 8}
    cell = {"accuracy": share, "median_distance": 0.25, "distance_in": "L2"}
    found = {"natural": share, "attacks": dict.fromkeys(("OnePixel", "ZOO"), cell) | {"WRN": None}}
    row = example.line(plan, "3", "SAD", {**found, "worst_case": share})
    text = list(example.markdown(plan, "3", [row]))
    assert text[-1] == (
        "| SAD | 50.0 [83.86] | 50.0 (L2 0.25) [75.75] | 50.0 (L2 0.25) [82.5] | – [83.14] | **50.0** |"
    )
    assert len({each.count("|") for each in text[2:]}) == 1


def test_rows_of_pictures_are_drawn_with_their_names(example: ModuleType) -> None:
    rows = {"x": np.ones((3, 1, 4, 4), np.float32), "S": np.zeros((3, 3, 4, 4), np.float32)}
    picture = example.drawn(rows, side=8, margin=20, gap=2)
    assert isinstance(picture, Image.Image) and picture.size == (20 + 3 * 10, 2 * 10)
    assert picture.getpixel((22, 3)) == (255, 255, 255) and picture.getpixel((22, 13)) == (0, 0, 0)


def test_other_data_are_refused_in_a_line(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--out", "o", "--data", "imagenet"])
    with pytest.raises(SystemExit):
        example.parsed()
    assert "digits, cifar10:DIR or cifar100:DIR" in capsys.readouterr().err


def test_the_plan_follows_the_data(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--out", "o", "--data", "cifar10:here"])
    plan, tables = example.parsed()
    assert (plan.kind, plan.model, plan.other) == ("cifar10", "cifar-resnet18", "cifar-wrn32-10")
    assert (plan.epsilon, plan.eta, tables) == ("8/255", (0.8, 0.8), ("1", "3", "5", "s46"))
    assert build_model(plan.model, 10) is not None
