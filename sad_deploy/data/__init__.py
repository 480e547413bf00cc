"""Images to calibrate on and to measure clean accuracy with: the embedded digits, CIFAR, folders.

May import numpy, torch and ``sad_runtime``, whose decoding and preprocessing it shares with inference.
"""

from __future__ import annotations

from .image_set import CalibrationData, ImageSet, every_batch, training_batches
from .source import DataSource
from .sources import find_data, with_validation
from .validation import WithValidation

__all__ = [
    "CalibrationData",
    "DataSource",
    "ImageSet",
    "WithValidation",
    "every_batch",
    "find_data",
    "training_batches",
    "with_validation",
]
