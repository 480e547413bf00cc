"""A tiny bundle, written fresh for every test that asks for it; and what was put on the disk meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.tiny_bundle import LinearModel, linear_model, write_tiny_bundle


@pytest.fixture
def model() -> LinearModel:
    return linear_model()


@pytest.fixture
def bundle_folder(tmp_path: Path, model: LinearModel) -> Path:
    return write_tiny_bundle(tmp_path / "sad-model", model)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of every ``os.fsync`` that succeeded, the file's or folder's inode and size by then."""
    found: list[tuple[int, int]] = []
    fsync = os.fsync

    def recording(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        found.append((status.st_ino, status.st_size))

    monkeypatch.setattr(os, "fsync", recording)
    return found
