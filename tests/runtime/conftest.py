"""One tiny bundle, written fresh for every test that asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_bundle import LinearModel, linear_model, write_tiny_bundle


@pytest.fixture
def model() -> LinearModel:
    return linear_model()


@pytest.fixture
def bundle_folder(tmp_path: Path, model: LinearModel) -> Path:
    return write_tiny_bundle(tmp_path / "sad-model", model)
