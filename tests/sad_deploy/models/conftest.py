"""A network's whole way, for networks from elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sad_deploy.attack_config import AttackKind
from sad_deploy.calibrated import load_calibrated
from sad_deploy.calibration_job import run
from sad_deploy.export_bundle import Exported, export_bundle
from sad_deploy.preparation import Preparation, prepare
from sad_deploy.provenance import save
from sad_deploy.recipe import Options, resolve
from sad_runtime.bundle import Bundle


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``images/`` in a working folder of its own: 48 small photographs without labels."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(48):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 36)).save(tmp_path / "images" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclasses.dataclass(frozen=True)
class Way:
    """What a network came to."""

    prepared: Preparation
    exported: Exported


@pytest.fixture
def calibrated_and_exported(images: Path) -> Callable[..., Way]:
    """calibrate, load again, export."""

    def go(**options: object) -> Way:
        given = {"data": "images", "attack": AttackKind.NONE, "eta": "0.01", "batches": 2, "batch_size": 8}
        asked = resolve(Options(**(given | {"samples": 4, "device": "cpu"} | options)))  # type: ignore[arg-type]
        ready = prepare(asked)
        outcome = run(asked, ready, lambda *_: None)
        save(images / "bundle", asked, ready, outcome)
        again, _ = load_calibrated(images / "bundle")
        x = torch.rand(3, *ready.preprocessing.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.equal(again(x.clone()), outcome.calibration.model(x.clone()))
        assert outcome.calibration.shift > 0
        exported = export_bundle(Bundle.open(images / "bundle"))
        assert all(graph.verification.label_agreement == 1 for graph in exported.graphs)
        return Way(ready, exported)

    return go
