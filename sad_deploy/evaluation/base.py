"""The network before calibration as a graph: the one part of an evaluation that needs PyTorch."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

from sad_export import two_pass
from sad_runtime.bundle import Bundle

from ..calibrated import BASE_STATISTICS, WEIGHTS, load_base
from ..fold import fold_batchnorm
from ..to_onnx import to_onnx


def base_graph(bundle: Bundle, folder: Path) -> Path | None:
    """Φ0 of a bundle as a two-pass graph with η = 0, whose first pass is Φ0 on pixels in [0, 1].

    Args:
        bundle: The bundle.
        folder: Where the file goes; one that is there is taken.

    Returns:
        None if the bundle was calibrated before Φ0's statistics were kept.

    Raises:
        UserError: The network cannot be rebuilt or exported.
    """
    if BASE_STATISTICS not in bundle.manifest.files:
        return None
    digests = bundle.manifest.files[WEIGHTS] + bundle.manifest.files[BASE_STATISTICS]
    path = folder / f"base.{hashlib.sha256(digests.encode()).hexdigest()[:12]}.onnx"
    if path.exists():
        return path
    base = load_base(bundle)
    assert base is not None
    manifest = bundle.manifest
    forward = to_onnx(fold_batchnorm(base), manifest.preprocessing.shape)
    space = manifest.input_space
    draft = path.with_suffix(".draft")
    onnx.save(two_pass(forward, eta=0.0, mean=space.mean, std=space.std), str(draft))
    draft.rename(path)
    return path
