"""What the tests of the engine build share."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from sad_export import two_pass
from tests.support.models import forward_onnx, small_cnn


@pytest.fixture(scope="session")
def graph_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small two-pass graph, 3×16×16; not to be written to."""
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx.save(two_pass(forward_onnx(small_cnn()), eta=0.3, mean=(0.5,) * 3, std=(0.25,) * 3), str(path))
    return path
