"""The embedded digits, calibrated and exported once, as a subject of attacks."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest

from sad_deploy.data.digits import digits_splits
from sad_deploy.evaluation.base import base_graph
from sad_deploy.evaluation.evaluate import DEFENDED, UNDEFENDED
from sad_deploy.evaluation.subject import Subject, Workshop, judged_file
from sad_deploy.evaluation.work import Images
from sad_runtime.bundle import Bundle
from sad_runtime.choices import BackendChoice


@dataclasses.dataclass(frozen=True)
class Digits:
    bundle: Path
    subjects: dict[str, Subject]
    images: Images


@pytest.fixture(scope="session")
def digits(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Digits:
    folder = tmp_path_factory.mktemp("evaluation")
    opened = Bundle.open(digits_bundle)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = base_graph(opened, folder)
    assert base is not None
    shop = Workshop(folder, lambda message: None)
    name, file, victim = judged_file(opened, BackendChoice.CPU, "fp32")
    defended = shop.defended(name, file, victim, base, "own")
    plain = {"plain": defended.sources["plain"]}
    undefended = shop.undefended("undefended network", base, plain, logits="plain_logits")
    test = digits_splits()[2].take(np.arange(48))
    assert test.labels is not None
    images = Images(test.images.astype(np.float32) / 255, test.labels)
    return Digits(digits_bundle, {DEFENDED: defended, UNDEFENDED: undefended}, images)
