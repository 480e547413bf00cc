"""``sad-deploy evaluate`` on a real bundle and on a classifier without a defence."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from sad_deploy.data.digits import digits_splits
from sad_runtime.bundle import Bundle
from sad_runtime.errors import UserError
from tests.support.command_line import exit_code, run_command
from tests.support.models import forward_onnx, small_cnn


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    test = digits_splits()[2]
    assert test.labels is not None
    for i in range(24):
        place = folder / str(test.labels[i])
        place.mkdir(exist_ok=True)
        Image.fromarray(test.images[i, 0]).save(place / f"{i}.png")
    return folder


def test_a_bundle_gets_its_result_in_the_terminal_as_json_and_inside(
    digits_bundle: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "m"
    shutil.copytree(digits_bundle, copy)
    words = ("evaluate", str(copy), "--epsilon", "0.05", "--epsilon", "0.1", "--images", "20", "--budget",
             "8s", "--processes", "1", "--save-images")  # fmt: skip
    text = run_command(*words)
    assert "worst case per image" in text and "undefended network" in text and "upper bound" in text
    stored = json.loads((tmp_path / "m.evaluation" / "evaluation.json").read_text())
    opened = Bundle.open(copy)
    opened.verify()
    assert json.loads(opened.file("evaluation.json").read_text()) == stored
    small, large = stored["results"]
    assert (small["threat_model"]["epsilon"], large["threat_model"]["epsilon"]) == (0.05, 0.1)
    assert large["worst_case"]["count"] <= small["worst_case"]["count"] <= small["clean"]["count"] <= 20
    assert stored["left_out"] and stored["effort"]["steps"] <= 100
    assert len(small["images"]) == 20 and stored["defence"]["eta"] == 0.3
    fields = {"eps", "clean_acc", "reported", "number_forward_passes", "unreliable", "footnote"}
    assert fields <= set(small["robustbench"])
    assert all(isinstance(value, str) for value in small["robustbench"].values())
    kept = sorted((tmp_path / "m.evaluation" / "images").rglob("*.png"))
    broken = sum(each["clean"]["count"] - each["worst_case"]["count"] for each in stored["results"])
    assert len(kept) == broken > 0
    again = json.loads(run_command(*words, "--json"))
    assert again["results"][0]["worst_case"] == small["worst_case"]


def test_archives_and_lists_are_what_their_folders_are(
    digits_bundle: Path, class_folders: Path, tmp_path: Path
) -> None:
    paths = sorted(class_folders.rglob("*.png"))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows([path, path.parent.name] for path in paths)
    (tmp_path / "list").write_text("".join(f"{path}\n" for path in paths))
    shutil.make_archive(str(tmp_path / "a"), "zip", class_folders)
    shutil.make_archive(str(tmp_path / "b"), "gztar", class_folders.parent, class_folders.name)
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "labels.csv").write_text("".join(f"{path.name},{path.parent.name}\n" for path in paths))
    for path in paths:
        shutil.copy(path, flat)
    forms: dict[str, tuple[str, ...]] = {
        "folders": (str(class_folders),),
        "csv": (str(tmp_path / "labels.csv"),),
        "list": (f"@{tmp_path / 'list'}",),
        "zip": (str(tmp_path / "a.zip"),),
        "tar": (str(tmp_path / "b.tar.gz"),),
        "flat": (str(flat), "--labels", str(flat / "labels.csv")),
    }
    for form, words in forms.items():
        command = ("evaluate", str(digits_bundle), "--clean", "--json", "--out", str(tmp_path / "e"))
        found = json.loads(run_command(*command, "--data", *words))
        assert found["data"]["images"] == 24 and not found["data"]["skipped"], form
        assert found["networks"]["undefended"]["accuracy"]["count"] == 24, form


def test_class_folders_are_attacked(digits_bundle: Path, class_folders: Path, tmp_path: Path) -> None:
    words = ("--data", str(class_folders), "--budget", "1s", "--images", "24", "--processes", "1", "--json")
    found = json.loads(run_command("evaluate", str(digits_bundle), *words, "--out", str(tmp_path)))
    assert found["data"]["images"] == 24 and found["results"][0]["clean"]["count"] >= 22


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``f.onnx``, which wants a mean and a std; ``images`` by what it answers; ``names`` of its classes."""
    folder = tmp_path_factory.mktemp("classifier")
    rng = np.random.default_rng(0)
    model = small_cnn()
    onnx.save(forward_onnx(model), str(folder / "f.onnx"))
    import torch

    for i in range(24):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        with torch.no_grad():
            x = torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)[None].float()
            label = int(model((x - 0.5) / 0.25).argmax())
        place = folder / "images" / f"c{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i}.png")
    (folder / "names").write_text("".join(f"c{k}\n" for k in range(5)))
    return folder


def test_any_classifier_without_a_defence(classifier: Path) -> None:
    text = run_command(
        "evaluate", str(classifier / "f.onnx"), "--plain", "--data", str(classifier / "images"),
        "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--classes", str(classifier / "names"),
        "--budget", "2s", "--processes", "1", "--json",
    )  # fmt: skip
    found = json.loads(text)
    (result,) = found["results"]
    assert result["clean"]["percent"] == 100 and result["undefended"] is None and found["defence"] == {}


def test_what_a_classifier_says_of_itself_is_read_as_infer_reads_it(classifier: Path, tmp_path: Path) -> None:
    """Mean and std inside, classes and preprocessing in its metadata."""
    graph = tmp_path / "g.onnx"
    run_command(
        "gradient", str(classifier / "f.onnx"), "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25",
        "--classes", str(classifier / "names"), "--resize", "16", "--out", str(graph),
    )  # fmt: skip
    words = ("evaluate", str(graph), "--plain", "--data", str(classifier / "images"), "--out", str(tmp_path))
    found = json.loads(run_command(*words, "--clean", "--json"))
    assert found["networks"]["g.onnx"]["accuracy"]["percent"] == 100
    assert found["classes"] == [f"c{k}" for k in range(5)]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--epsilon", "8"), "8/255 if grey levels are meant"),
        (("--epsilon", "x"), "epsilon must be a number"),
        (("--budget", "soon"), "--budget takes a time"),
        (("--data", "nowhere"), "there is no data folder or file nowhere"),
        (("--data", "tests/support"), "nothing to read from tests/support (no image in it)"),
        (("--data", "docs/images"), "have no label: no folder they are in is named like a class"),
        (("--precision", "fp16"), "no fp16 graph"),
        (("--plain",), "--plain runs a classifier's ONNX file"),
        (("--resize", "20"), "--resize: only for a bare graph"),
        (("--paper-table", "6", "--images", "4"), "the paper has no table '6'"),
        (("--paper-table", "1", "--clean"), "--paper-table does not go with --clean"),
        (("--clean", "--report", "page.html"), "--clean does not go with --report"),
        (("--report", "docs"), "docs is a folder; --report names a file"),
        (("--paper-table", "1", "--epsilon", "0.1", "--epsilon", "0.2", "--images", "4"), "one ε"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    digits_bundle: Path,
    words: tuple[str, ...],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code(monkeypatch, "evaluate", str(digits_bundle), *words) in (1, 2)
    said = capsys.readouterr().err
    assert reason in said and "Traceback" not in said


def test_accuracy_without_an_attack(digits_bundle: Path, class_folders: Path, tmp_path: Path) -> None:
    words = (
        "evaluate",
        str(digits_bundle),
        "--clean",
        "--data",
        str(class_folders),
        "--out",
        str(tmp_path / "e"),
    )
    text = run_command(*words)
    assert "no attack" in text and "first pass, recalibrated" in text and "undefended" in text
    found = json.loads(run_command(*words, "--json"))
    assert list(found["networks"]) == ["defended", "first pass, recalibrated", "undefended"]
    assert found["networks"]["undefended"]["accuracy"]["percent"] == 100
    assert np.sum(found["networks"]["defended"]["confusion"]) == 24


def test_a_table_of_the_paper_has_our_figures_beside_its_own(digits_bundle: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(digits_bundle), "--paper-table", "1", "--epsilon", "0.05", "--images", "6"]
    words += ["--budget", "1s", "--processes", "1", "--out", str(tmp_path / "e")]
    text = run_command(*words)
    assert "52.61" in text and "worst case" in text and "upper bound" in text
    found = json.loads(run_command(*words, "--json"))
    assert json.loads((tmp_path / "e" / "paper-table-1.json").read_text()) == found
    assert set(found["rows"]) == {"defended", "undefended"}
    assert list(found["rows"]["defended"]["attacks"]) == ["WeakPGD", "StrongPGD", "C&W", "APGD"]
    assert f"{found['rows']['undefended']['worst_case']['percent']:.1f}" in text


def test_accuracy_at_chance_is_an_alarm(digits_bundle: Path, class_folders: Path, tmp_path: Path) -> None:
    shifted = tmp_path / "labels.csv"
    paths = sorted(class_folders.rglob("*.png"))
    shifted.write_text("".join(f"{path},{(int(path.parent.name) + 1) % 10}\n" for path in paths))
    with pytest.raises(UserError, match="is classified as its label"):
        run_command(
            "evaluate", str(digits_bundle), "--clean", "--data", str(shifted), "--out", str(tmp_path / "e")
        )


def test_what_was_made_of_an_older_file_is_not_taken(digits_bundle: Path, tmp_path: Path) -> None:
    """Calibrated again with another η, the attack graphs are made again too."""
    copy = tmp_path / "m"
    shutil.copytree(digits_bundle, copy)
    words = ("evaluate", str(copy), "--images", "8", "--budget", "1s", "--processes", "1", "--json")
    run_command(*words)
    before = {path.name for path in (tmp_path / "m.evaluation" / "graphs").iterdir()}
    run_command(
        "calibrate", "--eta", "0.6", "--batches", "4", "--attack", "fgsm", "--out", str(copy), "--overwrite"
    )
    run_command("export", str(copy))
    run_command(*words)
    after = {path.name for path in (tmp_path / "m.evaluation" / "graphs").iterdir()}
    constant = [{name for name in names if ".constant.loss." in name} for names in (before, after)]
    assert len(constant[0]) == 1 and len(constant[1]) == 2
