from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sad_deploy import SADClassifier, load_calibrated
from sad_deploy.calibrated import load_samples
from sad_deploy.cli import main
from sad_deploy.data.digits import digits_splits
from sad_deploy.export_bundle import export_bundle
from sad_runtime.bundle import Bundle

QUICK = ["--batches", "2", "--attack", "fgsm"]


@pytest.fixture(autouse=True)
def work_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def calibrate(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sad-deploy", "calibrate", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def refused(monkeypatch, capsys, *arguments):
    """The one line on stderr of a run that must exit with 2 and write nothing."""
    before = sorted(Path.cwd().rglob("*"))
    assert calibrate(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    assert sorted(Path.cwd().rglob("*")) == before
    return " ".join(captured.err.split())


def digit_folder(folder, *, labelled, n=60):
    images = digits_splits()[0]
    for index in range(n):
        target = folder / str(images.labels[index]) if labelled else folder
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.images[index, 0]).save(target / f"{index}.png")


@pytest.mark.slow
def test_without_arguments_the_embedded_default_is_calibrated(monkeypatch, capsys):
    assert calibrate(monkeypatch) == 0
    out = capsys.readouterr().out
    bundle = Bundle.open("sad-model")
    accuracy, eta = (bundle.manifest.calibration[key] for key in ("clean_accuracy", "eta"))
    assert (accuracy["images"], accuracy["split"], accuracy["against"]) == (269, "test", "labels")
    assert accuracy["before_percent"] >= 98
    assert accuracy["before_percent"] - accuracy["after_percent"] <= 5
    assert f"{accuracy['before_percent']:.2f} % before, {accuracy['after_percent']:.2f} % after" in out
    assert eta["within_max_drop"] and bundle.manifest.defence.eta in [row["eta"] for row in eta["rows"]]
    assert all(f"{row['clean_percent']:.2f}" in out for row in eta["rows"])
    assert 0.2 <= bundle.manifest.defence.eta <= 0.7
    zero, smallest, *_, largest = eta["rows"]
    assert zero["eta"] == 0 and smallest["grey_levels"] < 0.5 and largest["clean_percent"] < 60
    assert "undefended" in out and "recalibration alone" in out
    low, high = accuracy["drop_95_percent_interval"]
    assert low < accuracy["drop_points"] < high and f"{low:.1f} to {high:.1f} with 95 %" in out
    assert not accuracy["chose_eta"] and f"recalibrated, has {accuracy['first_pass_percent']:.2f} %" in out

    model, manifest = load_calibrated(bundle)
    samples = load_samples(bundle)
    assert samples is not None and samples.images.shape == (64, 1, 16, 16)
    x = (torch.from_numpy(samples.images / np.float32(255)) - 0.3056) / 0.3193
    labels = SADClassifier(model, eta=manifest.defence.eta)(x).argmax(1).numpy()
    assert (labels == samples.labels).mean() >= 0.9


def test_a_given_eta_is_kept_and_provenance_says_how(monkeypatch, capsys):
    options = ["--eta", "0.1", "--normalization", "rms", "--clip", "--samples", "0", "--epsilon", "4/255"]
    assert calibrate(monkeypatch, *QUICK, *options, "--out", "mine") == 0
    captured = capsys.readouterr()
    manifest = json.loads(Path("mine/manifest.json").read_text())
    assert manifest["defence"] == {"eta": 0.1, "normalization": "rms", "clip": True}
    calibration = manifest["calibration"]
    assert calibration["attack"] == {"kind": "fgsm", "norm": "Linf", "epsilon": pytest.approx(4 / 255)}
    assert (calibration["batches"], calibration["batch_size"], calibration["momentum"]) == (
        2,
        128,
        "cumulative",
    )
    assert calibration["eta"] == {"chosen": "given"} and calibration["statistics_shift"] > 0
    assert not Path("mine/samples.npz").exists()
    assert "sad-deploy export mine" in captured.err and "robust" not in captured.out


def test_paper_settings_are_recorded(monkeypatch):
    assert calibrate(monkeypatch, "--paper", "--batches", "2") == 0
    manifest = Bundle.open("sad-model").manifest
    found = manifest.calibration
    assert (found["algorithm"], found["momentum"], found["attack"]["steps"]) == ("paper", 0.1, 20)
    assert (manifest.defence.eta, manifest.defence.normalization, manifest.defence.clip) == (
        0.8,
        "none",
        False,
    )


def test_a_large_drop_is_a_loud_warning_that_says_what_to_try(monkeypatch, capsys):
    assert calibrate(monkeypatch, *QUICK, "--normalization", "sign", "--eta", "1.0") == 0
    captured = capsys.readouterr()
    accuracy = Bundle.open("sad-model").manifest.calibration["clean_accuracy"]
    drop = accuracy["before_percent"] - accuracy["after_percent"]
    assert drop > 50
    assert f"warning: the defence costs {drop:.1f} points" in captured.err
    for advice in ("--eta auto", "a smaller --eta than 1", "--normalization rms", "--clip"):
        assert advice in captured.err


def test_if_no_eta_keeps_the_limit_nothing_is_written_unless_that_is_allowed(monkeypatch, capsys):
    options = [*QUICK, "--eta-grid", "3,5", "--max-drop", "1.5"]
    assert calibrate(monkeypatch, *options) == 2
    captured = capsys.readouterr()
    assert "least harmful" in captured.out and not Path("sad-model").exists()
    assert (
        "error: no eta costs at most 1.5 points of clean accuracy: recalibration alone (eta 0)"
        in captured.err
    )
    assert "--normalization rms" in captured.err and "--allow-drop" in captured.err
    assert calibrate(monkeypatch, *options, "--allow-drop") == 0
    assert "warning: no eta costs at most 1.5 points" in capsys.readouterr().err
    manifest = Bundle.open("sad-model").manifest
    assert manifest.defence.eta == 3 and not manifest.calibration["eta"]["within_max_drop"]


def test_a_limit_kept_only_by_the_images_that_chose_eta_is_a_warning(monkeypatch, capsys):
    assert calibrate(monkeypatch, *QUICK, "--eta-grid", "0.5", "--max-drop", "2") == 0
    found = Bundle.open("sad-model").manifest.calibration
    assert found["eta"]["within_max_drop"] and found["clean_accuracy"]["drop_points"] > 2
    err = capsys.readouterr().err
    assert "points of clean accuracy, more than --max-drop, on images that did not choose eta" in err
    assert "a smaller --max-drop" in err


def test_a_grid_that_moves_nothing_is_refused(monkeypatch, capsys):
    error = refused(monkeypatch, capsys, *QUICK, "--eta-grid", "1e-6,1e-5")
    assert "the sweep is flat: its largest eta, 1e-05, moves a pixel by" in error


def test_a_given_eta_that_moves_nothing_is_a_warning(monkeypatch, capsys):
    assert calibrate(monkeypatch, *QUICK, "--eta", "1e-4") == 0
    err = capsys.readouterr().err
    assert "warning: eta 0.0001 moves a pixel by 0.00" in err and "hint: --eta auto" in err
    assert Bundle.open("sad-model").manifest.calibration["clean_accuracy"]["grey_levels"] < 0.01


def test_no_warning_without_a_drop(monkeypatch, capsys):
    assert calibrate(monkeypatch, *QUICK, "--eta", "0.05") == 0
    assert "warning" not in capsys.readouterr().err


def test_the_same_seed_gives_the_same_file(monkeypatch):
    options = ["--batches", "2", "--steps", "1", "--eta", "0.1"]
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert calibrate(monkeypatch, *options, "--seed", seed, "--out", out) == 0
    hashes = [Bundle.open(name).manifest.files["weights.safetensors"] for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]


def test_an_unlabelled_folder_reports_agreement(monkeypatch, capsys, work_folder):
    digit_folder(work_folder / "flat", labelled=False)
    (work_folder / "flat" / "broken.png").write_bytes(b"\x89PNG broken")
    # All images are asked for, so that the broken one is met.
    options = ["--data", "flat", "--batch-size", "24", "--eta", "0.05"]
    assert calibrate(monkeypatch, *QUICK, *options) == 0
    captured = capsys.readouterr()
    manifest = Bundle.open("sad-model").manifest
    assert manifest.calibration["clean_accuracy"]["against"] == "predictions of the uncalibrated model"
    assert manifest.calibration["clean_accuracy"]["before_percent"] == 100
    assert manifest.calibration["clean_accuracy"]["split"] == "held-out"
    assert "against predictions of the uncalibrated model" in captured.out
    assert manifest.calibration["data"]["skipped_images"] == 1
    assert "1 unusable image skipped" in captured.err and "broken.png" in captured.err


def test_a_labelled_folder_gives_the_same_tensors_as_the_embedded_digits(monkeypatch, work_folder):
    digit_folder(work_folder / "mine", labelled=True, n=200)
    assert calibrate(monkeypatch, *QUICK, "--data", "mine", "--batch-size", "32", "--eta", "0.05") == 0
    bundle = Bundle.open("sad-model")
    assert bundle.manifest.classes == tuple("0123456789")
    samples = load_samples(bundle)
    known = {image.tobytes() for image in digits_splits()[0].images}
    assert samples is not None and {image.tobytes() for image in samples.images} <= known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eta", "much"], "error: --eta takes a number or auto, got 'much'"),
        (["--paper", "--eta", "0.5"], "--eta contradicts --paper"),
        (["--model", "resnet18"], "--data is missing"),
        (["--model", "reznet18", "--data", "."], "close: resnet18"),
        (["--weights", "absent.pt"], "no such file"),
        (["--data", "absent"], "no data folder or file absent"),
        (["--out", "."], "current folder"),
        (["--batch-size", "1000"], "fewer than two batches of 1000"),
        (["--attack", "magic"], "magic"),
        (
            ["--mean", "120", "--std", "61"],
            "at least 0 and at most 1, got 120: divide by 255",
        ),
        (["--mean", "0.5", "--std", "0"], "--std is in pixels of [0, 1], above 0"),
        (["--crop-pct", "1.2"], "--crop-pct is within (0, 1]"),
        (["--crop-pct", "0.9", "--resize", "20"], "--resize and --crop-pct say the same thing"),
        (
            ["--resize", "20", "--interpolation", "bicubic"],
            "--resize, --interpolation: digits has images of 16×16",
        ),
        (["--device", "tpu"], "--device"),
    ],
)
def test_wrong_use_is_one_error_before_any_long_work(monkeypatch, capsys, arguments, message):
    assert message in refused(monkeypatch, capsys, *QUICK[:2], *arguments)


def test_a_destination_that_is_not_a_bundle_is_kept(monkeypatch, capsys, work_folder):
    (work_folder / "precious").mkdir()
    (work_folder / "precious" / "thesis.txt").write_text("years of work")
    assert "precious" in refused(monkeypatch, capsys, "--out", "precious")
    assert (work_folder / "precious" / "thesis.txt").read_text() == "years of work"


def test_an_old_bundle_survives_a_failed_calibration(monkeypatch, capsys):
    assert calibrate(monkeypatch, *QUICK, "--eta", "0.1") == 0
    before = Path("sad-model/manifest.json").read_bytes()
    capsys.readouterr()
    refused(monkeypatch, capsys, *QUICK, "--batch-size", "1000")
    assert Path("sad-model/manifest.json").read_bytes() == before
    Bundle.open("sad-model").verify()


def test_an_exported_bundle_is_replaced_only_when_told_to(monkeypatch, capsys):
    options = [*QUICK, "--eta", "0.1"]
    assert calibrate(monkeypatch, *options) == 0
    assert calibrate(monkeypatch, *options) == 0, "what was only calibrated is replaced"
    export_bundle(Bundle.open("sad-model"), also_for_cpu=False)
    capsys.readouterr()
    error = refused(monkeypatch, capsys, *options)
    assert "sad-model was exported: model.onnx would be lost" in error and "--overwrite" in error
    assert calibrate(monkeypatch, *options, "--overwrite") == 0
    assert not Bundle.open("sad-model").manifest.graphs


def test_eta_zero_is_advised_nothing_about_eta(monkeypatch, capsys):
    """--eta 0 is recalibration alone; a large --epsilon makes it cost something."""
    options = [*QUICK[:2], "--attack", "fgsm", "--epsilon", "0.5", "--eta", "0"]
    assert calibrate(monkeypatch, *options) == 0
    err = capsys.readouterr().err
    assert "warning: the defence costs" in err and "another --attack than fgsm" in err
    assert "--eta" not in err and "--normalization" not in err and "--clip" not in err


def test_a_pickle_with_code_does_not_run(monkeypatch, capsys, work_folder):
    (work_folder / "evil.pt").write_bytes(b"cos\nmkdir\n(S'ran'\ntR.")
    assert "evil.pt" in refused(monkeypatch, capsys, "--weights", "evil.pt")
    assert not Path("ran").exists()


def test_without_torch_the_extra_is_named():
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['sad-deploy', 'calibrate']\n"
        "from sad_deploy.cli import main; main()"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 2
    assert 'pip install "sad-deploy[calibrate]"' in found.stderr and "Traceback" not in found.stderr


GREY = """
import torch
from torch import nn
class Grey(nn.Module):
    # Class k is the grey level (k + 1/2)/K: exact without training.
    def __init__(self, num_classes):
        super().__init__()
        k = num_classes
        self.conv, self.bn, self.fc = nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Linear(2, k)
        with torch.no_grad():
            self.conv.weight.fill_(1 / 3)
            c = (torch.arange(k) + 0.5) / k
            self.fc.weight.copy_(300 * torch.stack([c, c], 1))
            self.fc.bias.copy_(-300 * c * c)
    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))
"""
GREY_OPTIONS = [
    "--model", "grey_net:Grey", "--image-size", "16", "--mean", "0,0,0", "--std", "1,1,1", "--eta", "0.001",
    "--batch-size", "8", "--batches", "2", "--attack", "none",
]  # fmt: skip


def grey_folder(*names):
    """Folder k holds images of class k."""
    Path("grey_net.py").write_text(GREY)
    rng = np.random.default_rng(0)
    for k, name in enumerate(names):
        (Path("grey") / name).mkdir(parents=True)
        for i in range(10):
            level = 255 * (k + 0.5) / len(names) + rng.normal(0, 3, (16, 16, 3))
            Image.fromarray(level.clip(0, 255).astype(np.uint8)).save(f"grey/{name}/{i}.png")
    return "grey"


def grey_state():
    """Weights for four classes."""
    defined = {}
    exec(GREY, defined)
    return defined["Grey"](4).state_dict()


def test_class_folders_in_another_order_stop_the_calibration_and_classes_mends_it(monkeypatch, capsys):
    data = grey_folder("zero", "one", "two", "three")
    error = refused(monkeypatch, capsys, *GREY_OPTIONS, "--data", data, "--out", "b")
    assert "the data's classes are in another order than the network's outputs" in error
    assert "by these images: zero, one, two, three" in error
    Path("classes.txt").write_text("zero\none\ntwo\nthree\n")
    assert (
        calibrate(monkeypatch, *GREY_OPTIONS, "--data", data, "--classes", "classes.txt", "--out", "b") == 0
    )
    assert "100.00 % before" in capsys.readouterr().out
    assert Bundle.open("b").manifest.classes == ("zero", "one", "two", "three")


def test_a_network_at_chance_stops_the_calibration(monkeypatch, capsys):
    data = grey_folder("a", "b", "c", "d")
    options = ["--data", data, "--out", "b", "--weights", "broken.pt"]
    broken = grey_state() | {"fc.bias": torch.tensor([1e6, 0, 0, 0])}
    torch.save(broken, "broken.pt")
    error = refused(monkeypatch, capsys, *GREY_OPTIONS, *options)
    assert "the network is at chance on these images" in error


def test_what_is_left_out_and_chosen_is_said(monkeypatch, capsys):
    data = grey_folder("a", "b", "c", "d")
    Image.new("RGB", (16, 16)).save("grey/beside.png")
    Path("grey/a/notes.txt").write_text("")
    state = grey_state()
    torch.save({"state_dict": state, "state_dict_ema": state}, "both.pt")
    options = ["--data", data, "--weights", "both.pt", "--out", "b"]
    assert calibrate(monkeypatch, *GREY_OPTIONS, *options) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 4
    assert "1 image beside the class folders in grey/ was left out" in notes[0]
    assert ".txt" in notes[1]
    assert "if the network was trained on these images, the figures are too good: --val-data" in notes[2]
    assert "state_dict_ema beside it" in notes[3]


def test_images_that_the_network_was_not_trained_on_decide_alone(monkeypatch, capsys):
    """The training images are all labelled right, the others are a quarter wrong."""
    Path("grey_net.py").write_text(GREY)
    rng = np.random.default_rng(0)
    for split, n, wrong in (("train", 12, 0), ("val", 8, 2)):
        for k in range(4):
            folder = Path("photos") / split / "abcd"[k]
            folder.mkdir(parents=True)
            for i in range(n):
                level = 255 * ((k + (i < wrong)) % 4 + 0.5) / 4 + rng.normal(0, 3, (16, 16, 3))
                Image.fromarray(level.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    options = [*GREY_OPTIONS, "--batches", "6", "--data", "photos/train", "--out", "b"]
    assert calibrate(monkeypatch, *options) == 0
    assert "for example --val-data photos/val, which lies beside it" in capsys.readouterr().err
    assert calibrate(monkeypatch, *options, "--val-data", "photos/val") == 0
    captured = capsys.readouterr()
    assert "75.00 % before" in captured.out and "32 validation images" in captured.out
    assert "48 of photos/train calibrated; 32 others of photos/val measured accuracy" in captured.err
    assert "trained on these images" not in captured.err
    found = Bundle.open("b").manifest.calibration
    assert found["data"] == {
        "source": "photos/train", "validation": "photos/val", "labelled": True, "calibration_images": 48,
        "held_out_images": 32, "test_images": 0, "skipped_images": 0,
    }  # fmt: skip
    assert calibrate(monkeypatch, *options[:-4], "--data", "photos", "--out", "both") == 0
    err = capsys.readouterr().err
    assert "note: photos/train calibrates, photos/val chooses eta and measures accuracy" in err
    alone, both = (
        {file.name: file.read_bytes() for file in Path(name).glob("*.safetensors")} for name in ("b", "both")
    )
    assert alone and alone == both, "--data photos is --data photos/train --val-data photos/val"
    Path("photos/val/d").rename("photos/val/e")
    error = refused(monkeypatch, capsys, *options, "--val-data", "photos/val")
    assert "1 of 4 class folders in photos/val are not in photos/train: e" in error
    assert "--val-data digits: it takes other images" in refused(monkeypatch, capsys, "--val-data", "digits")


def test_a_broken_image_is_named_and_skipped_or_with_strict_fatal(monkeypatch, capsys):
    options = [*GREY_OPTIONS, "--data", grey_folder("a", "b", "c", "d"), "--out", "b"]
    Path("grey/c/broken.png").write_bytes(b"\x89PNG")
    torch.save(grey_state(), "grey.pt")
    options += ["--weights", "grey.pt"]
    error = refused(monkeypatch, capsys, *options, "--strict", "--batches", "10")
    assert "1 image of grey cannot be used: grey/c/broken.png: " in error
    assert calibrate(monkeypatch, *options, "--batches", "10") == 0
    assert "warning: 1 unusable image skipped: grey/c/broken.png: " in capsys.readouterr().err
