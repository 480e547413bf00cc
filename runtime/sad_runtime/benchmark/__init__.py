"""How fast a bundle is on this machine: decoding, the model with and without the defence, and all of it.

May import numpy, Pillow and onnxruntime; matplotlib only when a plot is drawn. The graph of the single pass
is handed in, because cutting it out needs onnx.
"""

from .figures import Benchmark, Decode, EndToEnd, Images, ModelPass, NotMeasured, Run
from .options import DEFAULT_BATCH_SIZES, Options
from .run import benchmark

__all__ = [
    "DEFAULT_BATCH_SIZES",
    "Benchmark",
    "Decode",
    "EndToEnd",
    "Images",
    "ModelPass",
    "NotMeasured",
    "Options",
    "Run",
    "benchmark",
]
