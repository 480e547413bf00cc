"""The values of ``--backend``, apart from the backends so that naming them imports nothing."""

from __future__ import annotations

import enum


class BackendChoice(enum.StrEnum):
    """Which backend runs a bundle; ``auto`` leaves it to :func:`sad_runtime.backends.open_backend`."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    RTX = "rtx"
