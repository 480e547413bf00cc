"""Images to calibrate on, to measure accuracy with and to attack: of folders, lists, archives, tables, code.

May import numpy and ``sad_runtime``, whose decoding and preprocessing it shares with inference; torch where a
batch is made, torchvision for CIFAR and pyarrow for tables, each when it is needed.
"""

from __future__ import annotations

from .image_set import CalibrationData, ImageSet, every_batch, training_batches
from .image_source import ImageSource
from .source import DataSource
from .sources import find_data, find_labelled
from .validation import WithValidation

__all__ = [
    "CalibrationData",
    "DataSource",
    "ImageSet",
    "ImageSource",
    "WithValidation",
    "every_batch",
    "find_data",
    "find_labelled",
    "training_batches",
]
