"""Networks by name, their weights, and the embedded default.

May import torch and torchvision; knows nothing of SAD.
"""

from __future__ import annotations

from .sources import build_model, model_names

__all__ = ["build_model", "model_names"]
