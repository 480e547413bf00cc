"""calibrate --from: Φ0 of a bundle, calibrated for other images."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sad_deploy.calibrated import BASE_STATISTICS, load_calibrated
from sad_deploy.cli import main
from sad_deploy.data.digits import digits_splits
from sad_deploy.models.digits import digits_state_dict
from sad_deploy.preparation import prepare
from sad_deploy.recipe import Options, resolve
from sad_runtime.bundle import Bundle
from sad_runtime.bundle.read import sha256
from sad_runtime.errors import UserError

QUICK = ["--batches", "2", "--eta", "0.3"]


def calibrate(*arguments: str) -> int:
    sys.argv = ["sad-deploy", "calibrate", *arguments]
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A bundle of the digits, its saliency scaled by rms, calibrated on FGSM."""
    folder = tmp_path_factory.mktemp("first") / "bundle"
    options = ["--attack", "fgsm", "--epsilon", "4/255", "--normalization", "rms", "--clip"]
    assert calibrate(*QUICK, *options, "--out", str(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def darker(tmp_path_factory) -> Path:
    """Another domain: 400 digits at half their brightness, without the class 9, in class folders."""
    folder = tmp_path_factory.mktemp("darker")
    images = digits_splits()[0]
    for index in np.flatnonzero(images.labels != 9)[:400]:
        target = folder / str(images.labels[index])
        target.mkdir(exist_ok=True)
        Image.fromarray(images.images[index, 0] // 2).save(target / f"{index}.png")
    return folder


def test_recalibration_starts_from_the_network_that_was_trained(first):
    found = prepare(resolve(Options(from_bundle=str(first), device="cpu")))
    state, trained = found.model.state_dict(), digits_state_dict()
    assert all(torch.equal(state[name], value) for name, value in trained.items())
    phi1, _ = load_calibrated(first)
    assert not torch.equal(phi1.state_dict()["bn.running_mean"], trained["bn.running_mean"])


def test_on_the_same_images_it_gives_the_same_network(first, tmp_path):
    assert calibrate("--from", str(first), *QUICK, "--out", str(tmp_path / "again")) == 0
    (phi1, old), (again, new) = (load_calibrated(folder) for folder in (first, tmp_path / "again"))
    assert all(torch.equal(again.state_dict()[name], value) for name, value in phi1.state_dict().items())
    assert new.defence == old.defence
    assert new.calibration["attack"] == old.calibration["attack"]


def test_another_domain_has_statistics_of_its_own_and_says_where_it_comes_from(
    first, darker, tmp_path, capsys
):
    out = tmp_path / "second"
    assert calibrate("--from", str(first), "--data", str(darker), *QUICK, "--out", str(out)) == 0
    assert "calibrated anew: Φ0 of" in " ".join(capsys.readouterr().err.split())
    (phi1, old), (again, new) = (load_calibrated(folder) for folder in (first, out))
    assert torch.equal(again.state_dict()["fc.weight"], phi1.state_dict()["fc.weight"])
    brightness = [each.state_dict()["bn.running_var"].sum() for each in (phi1, again)]
    assert brightness[1] < 0.8 * brightness[0]
    origin = new.calibration["recalibrated_from"]
    assert origin["manifest_sha256"] == sha256(first / "manifest.json")
    assert (origin["bundle"], origin["eta"], origin["data"]) == (str(first), 0.3, "digits")
    assert new.classes == old.classes and new.calibration["weights"] == old.calibration["weights"]

    third = tmp_path / "third"
    assert calibrate("--from", str(out), *QUICK, "--out", str(third)) == 0
    chain = Bundle.open(third).manifest.calibration["recalibrated_from"]
    assert chain["recalibrated_from"] == origin
    same = [load_calibrated(folder)[0].state_dict()["bn.running_var"] for folder in (first, third)]
    assert torch.equal(*same)


def test_a_defence_that_is_given_replaces_the_bundles(first):
    recipe = resolve(Options(from_bundle=str(first), normalization="linf", clip=False, steps=3))
    assert (recipe.normalization, recipe.clip, recipe.attack.kind, recipe.attack.steps) == (
        "linf",
        False,
        "pgd",
        3,
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "digits"], "--from brings the network and what it sees, and so do --model"),
        (["--mean", "0.5", "--std", "0.5"], "--mean, --std"),
        (["--from", "nowhere"], "nowhere"),
        (["--data", "colours"], "blue"),
    ],
)
def test_what_does_not_fit_is_refused(first, darker, tmp_path, monkeypatch, capsys, options, said):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(darker / "0", tmp_path / "colours" / "red")
    shutil.copytree(darker / "1", tmp_path / "colours" / "blue")
    source = [] if "--from" in options else ["--from", str(first)]
    assert calibrate(*source, *options, *QUICK, "--out", "out") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in error
    assert said in error
    assert not Path("out").exists()


def test_the_bundle_it_comes_from_is_not_replaced_unasked(first, capsys):
    before = hashlib.sha256((first / "manifest.json").read_bytes()).hexdigest()
    assert calibrate("--from", str(first), *QUICK, "--out", str(first)) == 2
    assert "would be replaced by what comes from it" in " ".join(capsys.readouterr().err.split())
    assert hashlib.sha256((first / "manifest.json").read_bytes()).hexdigest() == before


def test_a_bundle_without_the_statistics_before_says_what_to_do(first, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(first, old)
    (old / BASE_STATISTICS).unlink()
    manifest = json.loads((old / "manifest.json").read_text())
    del manifest["files"][BASE_STATISTICS]
    (old / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="before the statistics"):
        prepare(resolve(Options(from_bundle=str(old), device="cpu")))
