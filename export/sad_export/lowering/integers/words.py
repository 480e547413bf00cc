"""The words for the float graph that :mod:`sad_export.precision.int8` turns into integers for onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence

from sad_runtime.choices import ConvGradient

from ...gradient.axes import Axis
from ...gradient.convolution import Convolution
from ..portable import Portable


class Integers(Portable):
    """Convolutions instead of ConvTranspose, which has no integer kernel."""

    crops_before_padding = False

    def _conv_gradient_of(self, conv: Convolution) -> ConvGradient:
        return ConvGradient.CONV

    def pools_by_rows(self, axes: Sequence[Axis]) -> bool:
        """In integers the maxima cost more than the comparisons."""
        return False
