from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sad_deploy.data import CalibrationData, DataSource
from sad_runtime.manifest import Color, Preprocessing

TINY = Preprocessing(color=Color.GRAY, resize=(4, 4), crop=(4, 4))
KINDS = ("ant", "bee", "cow")


def encoded(level: int) -> bytes:
    """A PNG whose grey level is its number."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def everything(source: DataSource, **arguments: int) -> CalibrationData:
    wanted = {"calibration": 10_000, "held_out": 10_000, "seed": 0} | arguments
    return source.load(TINY, **wanted)


def labels_by_level(data: CalibrationData) -> dict[int, int | None]:
    """Class index by the number of the image, over all parts."""
    found: dict[int, int | None] = {}
    for part in (data.calibration, data.held_out):
        levels = part.images[:, 0, 0, 0].tolist()
        found |= dict(
            zip(
                levels, part.labels.tolist() if part.labels is not None else [None] * len(levels), strict=True
            )
        )
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path
