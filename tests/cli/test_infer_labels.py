"""``infer --labels``: how right the answers are, in the table, as JSON and in the report."""

from __future__ import annotations

import json
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sad_deploy.cli import main
from tests.support.tiny_bundle import changed, linear_model, write_tiny_bundle

COUNT = 40
Infer = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle whose saliency changes answers, and 40 images in folders of what the *first* pass says."""
    model = linear_model()
    # A step along S of the first class leads to the second.
    model.weight[1] = 1.5 * model.weight[0]
    model.bias[0] += 8
    write_tiny_bundle(tmp_path / "sad-model", model)
    with changed(tmp_path / "sad-model", classes=("ant", "bee", "cow", "dog")):
        pass
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        x = pixels.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
        label = int(model.two_pass(x)[2].argmax())
        place = tmp_path / "images" / ("ant", "bee", "cow", "dog")[(label + (i % 8 == 0)) % 4]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i:02}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def infer(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Infer:
    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sad-deploy", "infer", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        written = capfd.readouterr()
        return int(str(caught.value.code)), written.out, written.err

    return call


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("predictions.jsonl").read_text().splitlines()]


def by_hand() -> tuple[int, int]:
    """Right answers: defended, first pass."""
    names = [Path(row["path"]).parent.name for row in rows()]
    defended = sum(row["class"] == name for row, name in zip(rows(), names, strict=True))
    return defended, sum(row["plain_class"] == name for row, name in zip(rows(), names, strict=True))


@pytest.mark.usefixtures("here")
def test_accuracy_of_both_passes_by_class_and_its_calibration(infer: Infer) -> None:
    code, out, _ = infer("images", "--labels", "folders", "--json")
    assert code == 0
    found = json.loads(out)["accuracy"]
    defended, first = by_hand()
    assert first == COUNT - COUNT // 8 != defended
    networks = found["networks"]
    assert networks["defended"]["accuracy"]["count"] == defended
    assert networks["first pass, recalibrated"]["accuracy"]["count"] == first
    assert found["paired"]["points"] == pytest.approx(100 * (defended - first) / COUNT)
    assert np.sum(networks["defended"]["confusion"]) == COUNT
    bins = networks["defended"]["calibration"]
    assert (
        sum(each["images"] for each in bins) == COUNT
        and not networks["first pass, recalibrated"]["calibration"]
    )
    confidence = np.mean([row["probability"] for row in rows()])
    weighted = sum(each["images"] * each["confidence"] for each in bins) / COUNT
    assert weighted == pytest.approx(100 * confidence)


@pytest.mark.usefixtures("here")
def test_the_table_at_the_end(infer: Infer) -> None:
    _, out, err = infer("images", "--labels", "folders")
    defended, first = by_hand()
    assert f"{100 * defended / COUNT:.1f} %" in out and f"{100 * first / COUNT:.1f} %" in out
    assert "not attack" not in out and "no attack" in out and "the saliency put" in out
    assert "evaluate --clean measures" in err


@pytest.mark.parametrize("form", ["list", "zip", "tar", "one class", "resumed"])
def test_labels_of_lists_and_archives_are_those_of_folders(here: Path, infer: Infer, form: str) -> None:
    want = json.loads(infer("images", "--labels", "folders", "--json")[1])["accuracy"]["networks"]["defended"]
    for name in ("predictions.jsonl", "predictions.jsonl.run.json"):
        Path(name).unlink()
    words: tuple[str, ...] = ("images", "--labels", "folders")
    if form == "list":
        names = sorted(str(path) for path in Path("images").rglob("*.png"))
        Path("labels.csv").write_text("".join(f"{name},{Path(name).parent.name}\n" for name in names))
        words = ("images", "--labels", "labels.csv")
    elif form == "zip":
        with zipfile.ZipFile("val.zip", "w") as archive:
            for path in Path("images").rglob("*.png"):
                archive.write(path)
        words = ("val.zip", "--labels", "folders")
    elif form == "tar":
        shutil.make_archive("val", "gztar", "images")
        words = ("val.tar.gz", "--labels", "folders")
    elif form == "one class":
        count = len(list(Path("images/bee").iterdir()))
        found = json.loads(infer("images/bee", "--labels", "folders", "--json")[1])["accuracy"]
        assert found["networks"]["defended"]["accuracy"] == want["by_class"]["bee"] and count
        return
    elif form == "resumed":
        assert infer("images")[0] == 0
        words = (*words, "--resume")
    assert json.loads(infer(*words, "--json")[1])["accuracy"]["networks"]["defended"] == want


@pytest.mark.usefixtures("here")
def test_to_standard_output_only_the_rows_are_written(infer: Infer) -> None:
    code, out, _ = infer("images", "--labels", "folders", "--out", "-")
    assert code == 0 and len([json.loads(line) for line in out.splitlines()]) == COUNT


def test_the_report_has_the_figures_and_every_label(here: Path, infer: Infer) -> None:
    assert infer("images", "--labels", "folders", "--report", "report.html")[0] == 0
    page = Path("report.html").read_text(encoding="utf-8")
    defended, _ = by_hand()
    assert f"{defended} of {COUNT}" in page and "By class" in page
    found = re.search(r'id="rows">(.*?)</script>', page, re.S)
    assert found is not None
    data = json.loads(found[1])
    paths = [data["folders"][data["folder"][i]] + name for i, name in enumerate(data["name"])]
    assert [data["classes"][label] for label in data["truth"]] == [Path(path).parent.name for path in paths]


@pytest.mark.usefixtures("here")
def test_without_labels_nothing_is_said_of_accuracy(infer: Infer) -> None:
    _, out, _ = infer("images", "--report", "report.html", "--json")
    assert "accuracy" not in json.loads(out)
    page = Path("report.html").read_text(encoding="utf-8")
    assert "accuracy-title" not in page and '"truth":[]' in page


@pytest.mark.parametrize(
    ("change", "labels", "reason"),
    [
        ("none", "nowhere.csv", "the list nowhere.csv cannot be read"),
        ("fish", "list.csv", "has label 'fish', which is none of the 4 classes"),
        ("flat", "folders", "none of 40 images has a label: no folder they are in is named like a class"),
        ("shifted", "list.csv", "of chance among 4 classes"),
        ("elsewhere", "list.csv", "none of 40 images has a label: list.csv does not list them"),
    ],
)
def test_labels_that_cannot_be_right_are_said_in_a_line(
    here: Path, infer: Infer, change: str, labels: str, reason: str
) -> None:
    paths = sorted(Path("images").rglob("*.png"))
    order = ("ant", "bee", "cow", "dog")
    if change == "fish":
        Path("list.csv").write_text(f"{paths[0]},fish\n")
    elif change == "shifted":
        lines = (f"{path},{order[i % 4]}\n" for i, path in enumerate(paths))
        Path("list.csv").write_text("".join(lines))
    elif change == "elsewhere":
        Path("list.csv").write_text("other.png,ant\n")
    elif change == "flat":
        for path in paths:
            path.rename(Path("images") / path.name)
    code, _, err = infer("images", "--labels", labels)
    assert code == 2 and reason in err and "Traceback" not in err
    assert Path("predictions.jsonl").exists() == (change not in ("none", "fish")), "rows are kept"


@pytest.mark.usefixtures("here")
def test_some_without_a_label_are_counted(infer: Infer) -> None:
    path = next(Path("images").rglob("*.png"))
    shutil.copy(path, "images/loose.png")
    Path("images/ant/broken.png").write_bytes(b"no image")
    code, out, err = infer("images", "--labels", "folders")
    assert code == 3 and "1 image without a label, for example images/loose.png" in err
    assert f"{COUNT} images · no attack" in out
