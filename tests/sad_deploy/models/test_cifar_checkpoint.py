"""A CIFAR-10 checkpoint that other people trained: loaded by name, right on real images, and attacked.

pyautoattack ships the checkpoint with its examples, foolbox twenty images of CIFAR-10's test file.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from sad_deploy.checkpoints import load_weights, read_checkpoint
from sad_deploy.evaluation.attacks import CarliniWagner, Pgd, Problem
from sad_deploy.evaluation.oracles import Counts, GradientSource, VictimFile
from sad_deploy.evaluation.threat import ANYWHERE, Threat
from sad_deploy.fold import fold_batchnorm
from sad_deploy.models import build_model
from sad_deploy.to_onnx import to_onnx
from sad_export import attack_graph


def _in_package(package: str, inside: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package}, which ships {inside}, is not installed")
    return Path(spec.origin).parent / inside


@pytest.fixture(scope="module")
def network() -> nn.Module:
    path = _in_package("pyautoattack", "examples/model_test.pt")
    if not path.exists():
        pytest.skip("this pyautoattack ships no checkpoint")
    model = build_model("cifar-resnet18", 10)
    assert load_weights(model, read_checkpoint(path).state, source=str(path), num_classes=10) == ()
    return model


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    files = sorted(_in_package("foolbox", "data").glob("cifar10_*.png"))
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    labels = np.array([int(file.stem.rpartition("_")[2]) for file in files])
    return (pixels.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32), labels


def test_every_weight_of_a_real_checkpoint_is_taken(network: nn.Module) -> None:
    path = _in_package("pyautoattack", "examples/model_test.pt")
    published = torch.load(path, weights_only=True, map_location="cpu")
    ours = network.state_dict()
    assert set(published) == set(ours) and len(published) > 100
    for key, value in published.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=0)


def test_it_classifies_real_images_of_cifar10(
    network: nn.Module, images: tuple[np.ndarray, np.ndarray]
) -> None:
    pixels, labels = images
    with torch.no_grad():
        found = network(torch.from_numpy(pixels)).argmax(1).numpy()
    np.testing.assert_array_equal(found, labels)


@pytest.mark.slow
def test_its_exported_graph_is_broken_by_the_papers_attacks(
    network: nn.Module, images: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """It was trained naturally: WeakPGD leaves nothing, C&W with c = 0.2 at small distances."""
    pixels, labels = images[0][:8], images[1][:8]
    onnx.save(to_onnx(fold_batchnorm(network), (3, 32, 32)), tmp_path / "f.onnx")
    counts, paths = Counts(), {}
    for of in ("loss", "cotangent"):
        paths[of] = tmp_path / f"{of}.onnx"
        onnx.save(attack_graph(tmp_path / "f.onnx", way="plain", of=of, target="cpu"), paths[of])
    source = GradientSource(paths["loss"], paths["cotangent"], counts)
    victim = VictimFile(tmp_path / "f.onnx").open(counts)
    rngs = [np.random.default_rng(i) for i in range(len(pixels))]
    weak = Pgd(source, 20, 2 / 255).run(Problem(pixels, labels, Threat(4 / 255), victim, rngs))
    assert weak.broken.all()
    near = CarliniWagner(source, 0.2, 50).run(Problem(pixels, labels, ANYWHERE, victim, rngs))
    assert near.broken.mean() >= 0.5 and np.median(near.distance[near.broken]) < 1.0
