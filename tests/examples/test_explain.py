"""examples/explain.py on small networks: a panel a method, and a grey one where a method does not apply."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.export.test_without_batchnorm import network
from tests.support.models import forward_onnx, small_cnn

EXPLAIN = Path(__file__).parents[2] / "examples" / "explain.py"


def explained(folder: Path, forward: onnx.ModelProto, *options: str) -> tuple[list[np.ndarray], str]:
    """The panels, (H, W, 3) each, without their titles; and what was printed."""
    onnx.save(forward, folder / "forward.onnx")
    height, width = (dim.dim_value for dim in forward.graph.input[0].type.tensor_type.shape.dim[2:])
    noise = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((50, 40), Image.Resampling.BICUBIC).save(folder / "photo.png")
    command = [EXPLAIN, folder / "forward.onnx", folder / "photo.png", folder / "out.png", *options]
    run = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    whole = np.asarray(Image.open(folder / "out.png"))
    assert whole.shape[1] == 5 * width
    return np.split(whole[-height:], 5, axis=1), run.stdout


@pytest.mark.parametrize("name", ["cnn", pytest.param("swin", marks=pytest.mark.slow), "convnext"])
def test_each_method_is_a_panel_of_its_own(name: str, tmp_path: Path) -> None:
    forward = forward_onnx(small_cnn()) if name == "cnn" else network(name)[1]
    panels, said = explained(tmp_path, forward)
    assert "the last feature map is" in said
    assert all(panel.std() > 5 for panel in panels)
    assert all((a != b).any() for i, a in enumerate(panels) for b in panels[:i])


def test_a_vit_has_a_grey_panel_and_the_reason(tmp_path: Path) -> None:
    panels, said = explained(tmp_path, network("vit")[1])
    assert panels[2].std() == 0
    assert all(panel.std() > 5 for i, panel in enumerate(panels) if i != 2)
    assert "gradcam: no feature map" in said
