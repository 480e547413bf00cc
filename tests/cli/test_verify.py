"""``sad-deploy verify``: bundles by their references, bare graphs against their classifier."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from sad_export import GraphOptions, defend, write_gradient
from sad_runtime.bare_graph import BareOptions
from sad_runtime.devices import cuda_devices
from tests.support.command_line import exit_code
from tests.support.models import forward_onnx, randomised
from tests.support.tiny_bundle import linear_model, two_pass_graph, write_tiny_bundle

RUNTIMES = ("cpu", "openvino")
pytest.importorskip("openvino", reason="needs the extra openvino; the test install has it")


@pytest.fixture(scope="module")
def forward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with a square weight, which OpenVINO packs wrongly where both directions read it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 7),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("forward") / "forward.onnx"
    onnx.save(forward_onnx(randomised(model).eval(), (3, 32, 32)), path)
    return path


@dataclasses.dataclass(frozen=True)
class Command:
    """``sad-deploy verify`` and what it printed."""

    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]

    def __call__(self, *words: object, code: int = 0) -> tuple[str, str]:
        assert exit_code(self.monkeypatch, "verify", *map(str, words)) == code
        printed = self.capfd.readouterr()
        return printed.out, printed.err

    def results(self, *words: object, code: int = 0) -> dict[tuple[str, str], Any]:
        found = json.loads(self(*words, "--json", code=code)[0])
        return {(each["file"], each["backend"]): each for each in found}


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


def write_images(folder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def test_everything_that_loads_here_is_verified(tmp_path: Path, verify: Command) -> None:
    folder = write_tiny_bundle(tmp_path / "b", linear_model(), references=10)
    found = verify.results(folder)
    assert set(found) == {("model.onnx", name) for name in (*RUNTIMES, "cuda")}
    for name in RUNTIMES:
        each = found["model.onnx", name]
        assert each["verdict"] == "verified"
        assert each["figures"]["images"] == 10
        assert each["figures"]["saliency_cosine_min"] > 0.999
        assert each["ms_per_image"] > 0
    if cuda_devices().problem:
        assert found["model.onnx", "cuda"]["verdict"] == "does not run"
        assert "needs an NVIDIA GPU" in str(found["model.onnx", "cuda"]["problem"])


def test_a_wrong_graph_ends_with_2_and_its_figure(tmp_path: Path, verify: Command) -> None:
    wrong = two_pass_graph(linear_model(seed=1))
    folder = write_tiny_bundle(tmp_path / "b", linear_model(), references=10, graph=wrong)
    printed, _ = verify(folder, "--backend", "cpu", code=2)
    assert "wrong" in printed
    found = verify.results(folder, "--backend", "openvino", code=2)
    assert "median saliency cosine" in str(found["model.onnx", "openvino"]["shortfalls"])


def test_a_bundle_without_references_says_how_to_add_them(tmp_path: Path, verify: Command) -> None:
    folder = write_tiny_bundle(tmp_path / "b", linear_model())
    _, err = verify(folder, code=2)
    assert f"sad-deploy export {folder} adds it" in err


def test_what_a_bundle_has_not_is_named(tmp_path: Path, verify: Command) -> None:
    folder = write_tiny_bundle(tmp_path / "b", linear_model(), references=10)
    _, err = verify(folder, "--precision", "int8", code=2)
    assert "nothing for backend auto in precision int8" in err


@pytest.mark.parametrize("words", [(), ("int8", None, None, "cpu")])
def test_a_bare_graph_is_compared_with_its_classifier(
    tmp_path: Path, verify: Command, forward: Path, words: tuple[str, ...]
) -> None:
    images = write_images(tmp_path / "images")
    options = GraphOptions(*words)
    space = {"mean": [0.5] * 3, "std": [0.25] * 3}
    defend(forward, tmp_path / "sad.onnx", eta=0.05, options=options, images=images, **space)
    found = verify.results(tmp_path / "sad.onnx", "--against", forward, "--images", images)
    assert {found["sad.onnx", name]["verdict"] for name in RUNTIMES} == {"verified"}


@pytest.mark.parametrize(
    "options",
    [
        {"of": "largest"},
        {"of": 3},
        {"at": "last"},
        {"method": "gradcam"},
        {"bare": BareOptions(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))},
        {"method": "integrated", "steps": 3, "baseline": 0.5},
        {"method": "smoothgrad", "samples": 2, "noise_seed": 1},
    ],
)
def test_a_gradient_is_compared_with_its_classifier(
    tmp_path: Path, verify: Command, forward: Path, options: dict[str, Any]
) -> None:
    write_gradient(forward, tmp_path / "gradient.onnx", notice=lambda line: None, **options)
    found = verify.results(tmp_path / "gradient.onnx", "--against", str(forward))
    assert {found["gradient.onnx", name]["verdict"] for name in RUNTIMES} == {"verified"}


def test_the_gradient_of_another_classifier_is_found(tmp_path: Path, verify: Command, forward: Path) -> None:
    model = onnx.load(forward)
    largest = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    values = onnx.numpy_helper.to_array(largest)
    largest.CopyFrom(onnx.numpy_helper.from_array(np.flip(values).copy(), largest.name))
    onnx.save(model, tmp_path / "other.onnx")
    write_gradient(tmp_path / "other.onnx", tmp_path / "gradient.onnx")
    found = verify.results(tmp_path / "gradient.onnx", "--against", str(forward), "--backend", "cpu", code=2)
    assert found["gradient.onnx", "cpu"]["verdict"] == "wrong"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("{gradient}",), "what should it be compared with?"),
        (("{forward}", "--against", "{forward}"), "neither a two-pass graph nor a gradient"),
        (("{label}", "--against", "{forward}"), "takes label beside the image"),
        (("{gradient}", "--against", "{forward}", "--backend", "rtx"), "--backend rtx runs engines"),
        (("{gradient}", "--against", "missing.onnx"), "missing.onnx"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    tmp_path: Path, forward: Path, words: tuple[str, ...], message: str, verify: Command
) -> None:
    write_gradient(forward, tmp_path / "gradient.onnx")
    write_gradient(forward, tmp_path / "label.onnx", of="label")
    places = {"gradient": tmp_path / "gradient.onnx", "label": tmp_path / "label.onnx", "forward": forward}
    _, err = verify(*(word.format(**places) for word in words), code=2)
    assert message in err
