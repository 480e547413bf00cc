"""Weights from a file into a network, without ever running what the file says.

:mod:`.files` reads a file, :mod:`.contents` finds the state dicts in it, :mod:`.fitting` puts one into a
network. May import torch and safetensors; knows nothing of networks' names.
"""

from __future__ import annotations

from .contents import Checkpoint, read_checkpoint, read_state_dict
from .fitting import load_weights, without_prefix

__all__ = ["Checkpoint", "load_weights", "read_checkpoint", "read_state_dict", "without_prefix"]
