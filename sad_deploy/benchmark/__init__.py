"""How fast a bundle is on this machine: decoding, the model with and without the defence, and all of it.

May import ``sad_runtime``; matplotlib only when a plot is drawn. The graph of the single pass is handed in,
because cutting it out needs onnx, which a serving host has not.
"""

from .figures import Benchmark, Decode, EndToEnd, Images, ModelPass, NotMeasured, Run
from .options import DEFAULT_BATCH_SIZES, Options
from .run import Progress, benchmark
from .subject import SinglePass

__all__ = [
    "DEFAULT_BATCH_SIZES",
    "Benchmark",
    "Decode",
    "EndToEnd",
    "Images",
    "ModelPass",
    "NotMeasured",
    "Options",
    "Progress",
    "Run",
    "SinglePass",
    "benchmark",
]
