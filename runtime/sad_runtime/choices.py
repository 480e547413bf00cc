"""The words that options take, once for command line, exporter and manifest; importing it imports nothing.

Every choice is a string, so that it can be compared with one, printed, and stored as JSON.
"""

from __future__ import annotations

import enum
from typing import TypeVar

from .errors import UserError


class Precision(enum.StrEnum):
    """Element type of weights and values inside a graph, from the finest to the coarsest."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"

    @classmethod
    def lowest_of(cls, label: str) -> Precision:
        """The coarsest in a graph's label: ``fp16`` of ``fp32-fp16``.

        Raises:
            ValueError: The label names something else.
        """
        return max(map(cls, label.split("-")), key=list(cls).index)


class Target(enum.StrEnum):
    """What a graph is written for.

    ``portable``: every runtime and TensorRT; an engine keeps one copy of each weight.
    ``cpu``: onnxruntime on the CPU: the same results from the operators that it runs faster.
    """

    PORTABLE = "portable"
    CPU = "cpu"


class ConvGradient(enum.StrEnum):
    """How the gradient of a convolution's input is written.

    ``convtranspose``: ConvTranspose on the same initializer; weights stay shared in engines too.
    ``conv``: Conv on the flipped weight (computed in the graph, so the file stays small), and for a stride a
    small Conv for each phase; for kernels that TensorRT lacks.
    ``auto``: the faster or the only possible one for each convolution.
    """

    AUTO = "auto"
    CONVTRANSPOSE = "convtranspose"
    CONV = "conv"


class Normalization(enum.StrEnum):
    """How the saliency S is scaled before η, per sample. A zero map stays zero.

    ``none``: S as it is (the paper). ``rms``: unit root mean square, so η is the mean change per
    element. ``linf``: unit largest magnitude. ``sign``: the sign of every element.
    """

    NONE = "none"
    RMS = "rms"
    LINF = "linf"
    SIGN = "sign"


class Objective(enum.StrEnum):
    """What a gradient graph gives the gradient of, image by image.

    ``largest``: the largest logit. ``class``: the logit of one class, named by its number in its place.
    ``label``: the logit of the class that a further input names. ``cotangent``: the logits, times a further
    input of their shape. ``loss``: the cross-entropy of the class that a further input names.
    """

    LARGEST = "largest"
    CLASS = "class"
    LABEL = "label"
    COTANGENT = "cotangent"
    LOSS = "loss"


class Way(enum.StrEnum):
    """Which gradient an attack on a two-pass graph follows.

    ``plain``: that of the first pass, ignoring the defence. ``constant``: that of the second pass, the
    saliency held constant. ``exact``: that of the second pass, through the saliency too.
    """

    PLAIN = "plain"
    CONSTANT = "constant"
    EXACT = "exact"


class Norm(enum.StrEnum):
    """How far an attacked image may be from the original: by its largest change, or by the root of the sum of
    squares.
    """

    LINF = "linf"
    L2 = "l2"


class Method(enum.StrEnum):
    """How a gradient graph says which parts of the image a logit comes from.

    ``saliency``: the gradient itself (Simonyan et al. 2014). ``gradcam``: the channels of a feature map, each
    weighted with the mean of its gradient (Selvaraju et al. 2017). ``integrated``: the gradient, averaged on
    the line from a baseline, times the difference (Sundararajan et al. 2017). ``smoothgrad``: the gradient,
    averaged over noisy copies of the image (Smilkov et al. 2017).
    """

    SALIENCY = "saliency"
    GRADCAM = "gradcam"
    INTEGRATED = "integrated"
    SMOOTHGRAD = "smoothgrad"


class Ranges(enum.StrEnum):
    """How the ranges of int8 are found from values on real images: onnxruntime's calibration methods."""

    PERCENTILE = "percentile"
    ENTROPY = "entropy"


class FlavorChoice(enum.StrEnum):
    """Which TensorRT builds an engine; ``auto``: enterprise where it and a GPU are there, else RTX."""

    AUTO = "auto"
    TENSORRT = "tensorrt"
    RTX = "rtx"


class HardwareCompatibility(enum.StrEnum):
    """How far beyond the GPU that it was built on an engine of enterprise TensorRT reaches."""

    NONE = "none"
    AMPERE_PLUS = "ampere+"
    SAME_COMPUTE_CAPABILITY = "same-compute-capability"


class BackendChoice(enum.StrEnum):
    """Which backend runs a bundle; ``auto`` leaves it to :func:`sad_runtime.backends.open_backend`."""

    AUTO = "auto"
    CPU = "cpu"
    OPENVINO = "openvino"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    RTX = "rtx"


class TritonBackend(enum.StrEnum):
    """What runs a model inside Triton Inference Server."""

    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"


class TritonDevice(enum.StrEnum):
    """Where; ``auto``: on GPUs where Triton sees some."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


class TritonInput(enum.StrEnum):
    """What a client sends of an image: ``float``, (C, H, W) in [0, 1], or ``uint8``, (H, W, C)."""

    FLOAT = "float"
    UINT8 = "uint8"


class TritonImages(enum.StrEnum):
    """Who decodes and resizes images: the ``client``, or the ``server``, which then takes image files."""

    CLIENT = "client"
    SERVER = "server"


_Choice = TypeVar("_Choice", bound=enum.StrEnum)


def choose(kind: type[_Choice], word: str, what: str) -> _Choice:
    """The choice that a word names.

    Args:
        kind: The choices.
        word: One of them, as a string or as itself.
        what: What is chosen, for the message: ``precision``.

    Raises:
        UserError: The word is none of them.
    """
    try:
        return kind(word)
    except ValueError:
        words = ", ".join(kind)
        raise UserError(
            f"no {what} {word!r}; there are {words}", hint=f"for example {next(iter(kind))}"
        ) from None
