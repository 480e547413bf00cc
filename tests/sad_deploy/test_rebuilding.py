"""What calibrate accepts, export can load: however a network was wrapped or its weights are computed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sad_deploy.attack_config import AttackKind
from sad_deploy.calibrated import load_calibrated
from sad_deploy.calibration_job import run
from sad_deploy.export_bundle import export_bundle
from sad_deploy.preparation import prepare
from sad_deploy.provenance import save
from sad_deploy.recipe import Options, Recipe, resolve
from sad_export import GraphOptions
from sad_runtime.bundle import Bundle
from sad_runtime.errors import UserError

NETWORKS = """
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

K = 5

def plain(wrap=lambda layer: layer):
    torch.manual_seed(0)
    return nn.Sequential(
        wrap(nn.Conv2d(3, 6, 3, padding=1)), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), wrap(nn.Linear(6, K)),
    )

def weight_norm_hooks(): return plain(weight_norm)
def spectral_norm_hooks(): return plain(spectral_norm)
def parametrized(): return plain(parametrizations.weight_norm)
def spectrally(): return plain(parametrizations.spectral_norm)
def parallel(): return nn.DataParallel(plain())
def compiled(): return torch.compile(plain())

def lazy():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.LazyConv2d(6, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(K),
    )

class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = plain()

    def forward(self, x):
        return self.module(x.sub_(0.1))

widths = iter(range(4, 100))

def another_each_time():
    width = next(widths)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, K),
    )

class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = plain()

    def forward(self, x):
        return self.inner(x) if x.sum().item() < 1e9 else self.inner(-x)

class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)

def with_activation(function):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), Apply(function), nn.ReLU(), nn.Conv2d(6, 6, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, K),
    )

class SwishOfItsOwn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, dy):
        s = torch.sigmoid(ctx.saved_tensors[0])
        return dy * (s + ctx.saved_tensors[0] * s * (1 - s))

class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dy):
        return -dy

class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(8 * x) / 8

    @staticmethod
    def backward(ctx, dy):
        return dy

def swish(): return with_activation(SwishOfItsOwn.apply)
def reversal(): return with_activation(Reversal.apply)
def straight_through(): return with_activation(StraightThrough.apply)
def gate(): return with_activation(lambda x: x * torch.sigmoid(9 * x.mean((2, 3), keepdim=True)).detach())
def spectrum(): return with_activation(lambda x: torch.fft.rfft2(x).abs())
def probabilities(): return nn.Sequential(plain(), nn.Softmax(1))

def steep(): return with_activation(lambda x: torch.sin(3e4 * x))

def guided():
    net = with_activation(nn.Identity())
    net[3].register_full_backward_hook(lambda module, dx, dy: (dx[0].clamp(min=0),))
    return net
"""
ACCEPTED = [
    "plain", "weight_norm_hooks", "spectral_norm_hooks", "parametrized", "spectrally", "parallel", "compiled",
    "lazy", "Inside", "swish",
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "wrapped_networks.py").write_text(NETWORKS)
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(48):  # without labels: the network's own predictions stand in
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("wrapped_networks", None)


def recipe(name: str) -> Recipe:
    return resolve(
        Options(
            model=f"wrapped_networks:{name}", data="photos", image_size=16, mean="0,0,0", std="1,1,1",
            attack=AttackKind.NONE, eta="0.01", batches=2, batch_size=8, samples=4, device="cpu",
        )
    )  # fmt: skip


def quiet(stage: str, done: int, total: int) -> None:
    pass


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_calibrated_network_is_loaded_as_it_was(here: Path, name: str) -> None:
    asked = recipe(name)
    preparation = prepare(asked)
    outcome = run(asked, preparation, quiet)
    save(here / "bundle", asked, preparation, outcome)
    loaded, _ = load_calibrated(here / "bundle")
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(x.clone()), outcome.calibration.model(x.clone()))


@pytest.mark.parametrize("name", ["weight_norm_hooks", "lazy", "Inside"])
def test_its_graph_is_exported(here: Path, name: str) -> None:
    asked = recipe(name)
    preparation = prepare(asked)
    save(here / "bundle", asked, preparation, run(asked, preparation, quiet))
    graphs = export_bundle(Bundle.open(here / "bundle")).graphs
    assert [graph.verification.label_agreement for graph in graphs] == [1, 1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("another_each_time", "another network each time"),
        ("Untraceable", "cannot export this model to ONNX"),
        ("reversal", r"not that of its forward \(cosine -1.*: Reversal has a backward of its own"),
        ("straight_through", r"zero everywhere: each way leads through .*\(Round\)"),
        ("gate", r"not that of its forward \(cosine 0\.9.*\), and an exported graph"),
        ("guided", r"not that of its forward \(cosine 0\..*\), and an exported graph"),
        ("spectrum", "no gradient rule for DFT"),
        ("probabilities", "returns probabilities"),
    ],
)
def test_what_could_not_be_exported_is_refused_before_the_work(here: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(recipe(name))


def test_a_network_whose_answers_rounding_decides_is_named_as_one(here: Path) -> None:
    asked = recipe("steep")
    preparation = prepare(asked)
    save(here / "bundle", asked, preparation, run(asked, preparation, quiet))
    with pytest.raises(UserError, match=r"PyTorch's float32 differs from its float64 too: .*logits"):
        export_bundle(Bundle.open(here / "bundle"))
    graphs = export_bundle(Bundle.open(here / "bundle"), options=GraphOptions(allow_inaccurate=True)).graphs
    assert all("logits" in "".join(graph.shortfalls) for graph in graphs)
