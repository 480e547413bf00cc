"""Write → verify → build, and all of it once more with ``conv`` where TensorRT has no kernel.

Every export is this job: that of a bundle, whose graph is compared with PyTorch, and that of a bare graph,
which is compared with itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Generic, TypeVar

from sad_runtime.choices import ConvGradient, Precision, Target, choose
from sad_runtime.tensorrt import EngineInfo

from .lowering import Lowering, lowering_for
from .precision import Variant
from .tensorrt import UnbuildableError

Figures = TypeVar("Figures")


@dataclasses.dataclass(frozen=True)
class GraphOptions:
    """Which of its forms a two-pass graph is written in. Words are checked when this is made.

    Attributes:
        precision: Of the second pass, which classifies: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        saliency_precision: Of the first pass and the gradient; None: as ``precision``.
        ranges: How the ranges of int8 are found: ``percentile``, which is the default, or ``entropy``.
        target: ``portable``, or ``cpu`` for the fastest form in onnxruntime on the CPU, in fp32 or int8.
        conv_gradient: How the gradient of convolutions is written: ``auto``, ``convtranspose`` or ``conv``.
        allow_inaccurate: Keep a graph whose figures are outside their tolerance.

    Raises:
        UserError: No such word, or words that do not go together.
    """

    precision: str = Precision.FP32
    saliency_precision: str | None = None
    ranges: str | None = None
    target: str = Target.PORTABLE
    conv_gradient: str = ConvGradient.AUTO
    allow_inaccurate: bool = False

    def __post_init__(self) -> None:
        choose(Target, self.target, "target")
        choose(ConvGradient, self.conv_gradient, "convolution gradient")
        self.variant.check_target(self.target)

    @property
    def variant(self) -> Variant:
        """The two precisions and the ranges."""
        return Variant.of(self.precision, self.saliency_precision, self.ranges)

    @property
    def lowering(self) -> Lowering:
        """How the float32 graph is written."""
        return lowering_for(
            self.target,
            self.conv_gradient,
            precision=self.variant.precision,
            saliency=self.variant.saliency,
        )


@dataclasses.dataclass(frozen=True)
class Made(Generic[Figures]):
    """What a job made.

    Attributes:
        conv_gradient: How the graph's convolutions are differentiated.
        figures: What verifying the graph gave.
        engine: The engine, if one was asked for.
    """

    conv_gradient: str
    figures: Figures
    engine: EngineInfo | None


def write_and_build(
    write: Callable[[str], Figures],
    build: Callable[[], EngineInfo] | None,
    options: GraphOptions,
    status: Callable[[str], None],
) -> Made[Figures]:
    """Write and verify a graph and build its engine; a graph that cannot be built is written again.

    Args:
        write: Called with a way of writing the gradient of convolutions; writes and verifies the graph and
            returns its figures.
        build: Builds the engine of what was written last; None where none is asked for.
        options: The form asked for.
        status: Called with one line if the graph is written again.

    Raises:
        UserError: As ``write`` raises it; or TensorRT refused the graph.
    """
    chosen = options.lowering.conv_gradient
    figures = write(chosen)
    if build is None:
        return Made(chosen, figures, None)
    try:
        return Made(chosen, figures, build())
    except UnbuildableError as error:
        is_open = options.conv_gradient == ConvGradient.AUTO and chosen != ConvGradient.CONV
        if not is_open or error.operator not in (None, "ConvTranspose"):
            raise
        status(f"{error.message}; writing the graph with --conv-gradient conv instead")
    figures = write(ConvGradient.CONV)
    return Made(ConvGradient.CONV, figures, build())
