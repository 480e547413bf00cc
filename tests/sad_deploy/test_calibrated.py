from __future__ import annotations

import copy
import stat

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from sad_deploy import load_calibrated
from sad_deploy.calibrated import BASE_STATISTICS, WEIGHTS, load_base, load_samples, write_calibrated
from sad_deploy.data import ImageSet
from sad_deploy.data.digits import PREPROCESSING
from sad_deploy.models import build_model
from sad_runtime.bundle import Bundle
from sad_runtime.errors import BundleError
from sad_runtime.manifest import Defence, InputSpace, Manifest, ModelSource
from tests.support.networks import changed, randomize_batchnorm, state


def manifest(classes=10):
    return Manifest(
        model=ModelSource("digits", classes),
        classes=tuple(map(str, range(classes))),
        preprocessing=PREPROCESSING,
        input_space=InputSpace((0.3,), (0.3,)),
        defence=Defence(0.4),
        calibration={},
    )


def samples(n=3, labels=True, side=16):
    pixels = np.random.default_rng(0).integers(0, 256, (n, 1, side, side), dtype=np.uint8)
    return ImageSet(pixels, np.arange(n, dtype=np.int64) if labels else None)


def test_a_calibrated_model_comes_back_bit_for_bit(tmp_path):
    model = randomize_batchnorm(build_model("digits", 10))
    write_calibrated(tmp_path / "b", model, manifest(), None)
    loaded, found = load_calibrated(tmp_path / "b")
    assert changed(state(model), loaded) == set()
    assert not loaded.training and found.defence == Defence(0.4)


def test_the_network_before_calibration_comes_back_bit_for_bit_from_a_small_file(tmp_path):
    model = randomize_batchnorm(build_model("digits", 10))
    base = copy.deepcopy(model)
    for module in base.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.add_(1)
    write_calibrated(tmp_path / "b", model, manifest(), None, base=base)
    loaded = load_base(Bundle.open(tmp_path / "b"))
    assert loaded is not None and not loaded.training and changed(state(base), loaded) == set()
    assert changed(state(model), loaded)
    size = {path.name: path.stat().st_size for path in (tmp_path / "b").iterdir()}
    assert size[BASE_STATISTICS] < 0.02 * size[WEIGHTS]


def test_statistics_of_another_network_are_refused(tmp_path):
    model, base = build_model("digits", 10), nn.BatchNorm2d(3)
    with pytest.raises(KeyError):
        write_calibrated(tmp_path / "b", model, manifest(), None, base=base)
    write_calibrated(
        tmp_path / "b", model, manifest(), None, base=randomize_batchnorm(build_model("digits", 10))
    )
    bundle = Bundle.open(tmp_path / "b")
    bundle.file(BASE_STATISTICS).write_bytes(safetensors.torch.save({"stem.weight": torch.ones(2)}))
    with pytest.raises(BundleError, match=r"not of this bundle's network: stem\.weight"):
        load_base(bundle)


def test_a_bundle_without_them_has_no_network_before_calibration(tmp_path):
    write_calibrated(tmp_path / "b", build_model("digits", 10), manifest(), None)
    assert load_base(Bundle.open(tmp_path / "b")) is None


@pytest.mark.parametrize("labels", [True, False])
def test_samples_come_back(tmp_path, labels):
    write_calibrated(tmp_path / "b", build_model("digits", 10), manifest(), samples(labels=labels))
    found = load_samples(Bundle.open(tmp_path / "b"))
    assert found is not None and np.array_equal(found.images, samples().images)
    assert (found.labels is not None) is labels


@pytest.mark.parametrize("stored", [None, samples(0)])
def test_without_samples_none_are_stored(tmp_path, stored):
    write_calibrated(tmp_path / "b", build_model("digits", 10), manifest(), stored)
    assert load_samples(Bundle.open(tmp_path / "b")) is None
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"manifest.json", WEIGHTS}


def test_samples_of_another_shape_are_refused(tmp_path):
    write_calibrated(tmp_path / "b", build_model("digits", 10), manifest(), samples(side=8))
    with pytest.raises(BundleError, match="uint8 images of shape"):
        load_samples(Bundle.open(tmp_path / "b"))


def test_changed_weights_are_refused(tmp_path):
    write_calibrated(tmp_path / "b", build_model("digits", 10), manifest(), None)
    (tmp_path / "b" / WEIGHTS).write_bytes(b"other")
    with pytest.raises(BundleError, match="changed"):
        load_calibrated(tmp_path / "b")


def test_others_may_read_the_weights_as_far_as_the_umask_allows(tmp_path):
    write_calibrated(tmp_path / "b", build_model("digits", 10), manifest(), samples())
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "b").iterdir()}
    assert len(modes) == 1


def test_tied_weights_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "tied_network.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    square = [nn.Linear(10, 10) for _ in range(2)]\n"
        "    m = nn.Sequential(nn.Flatten(), nn.Linear(256, 10), nn.BatchNorm1d(10), *square)\n"
        "    m[4].weight = m[3].weight\n"
        "    return m\n"
    )
    monkeypatch.chdir(tmp_path)
    model: nn.Module = build_model("tied_network:build", 10)
    tied = manifest()
    tied = type(tied)(**{**vars(tied), "model": ModelSource("tied_network:build", 10)})
    write_calibrated(tmp_path / "b", model, tied, None)
    loaded, _ = load_calibrated(tmp_path / "b")
    x = torch.rand(2, 1, 16, 16)
    assert torch.equal(loaded(x), model(x))
