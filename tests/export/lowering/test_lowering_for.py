"""One place chooses how a graph is written."""

from __future__ import annotations

import pytest

from sad_export.lowering import Portable, lowering_for
from sad_export.lowering.integers import Integers
from sad_export.lowering.nchwc import Nchwc
from sad_export.lowering.packed_fp16 import PackedFp16
from sad_runtime.choices import ConvGradient, Precision, Target

AUTO, CONV, CONVTRANSPOSE = ConvGradient.AUTO, ConvGradient.CONV, ConvGradient.CONVTRANSPOSE
FP32, FP16, BF16, INT8 = Precision
PORTABLE, CPU = Target


@pytest.mark.parametrize(
    ("target", "asked", "precision", "saliency", "words", "conv_gradient"),
    [
        (PORTABLE, AUTO, FP32, None, Portable, AUTO),
        (PORTABLE, CONV, FP32, None, Portable, CONV),
        (PORTABLE, AUTO, FP16, None, PackedFp16, AUTO),
        (PORTABLE, AUTO, BF16, FP16, PackedFp16, AUTO),
        (PORTABLE, AUTO, FP16, FP32, Portable, AUTO),
        (PORTABLE, AUTO, BF16, None, Portable, CONV),
        (PORTABLE, CONVTRANSPOSE, BF16, None, Portable, CONVTRANSPOSE),
        (PORTABLE, AUTO, INT8, None, Portable, AUTO),
        (CPU, AUTO, FP32, None, Nchwc, AUTO),
        (CPU, CONV, FP32, None, Nchwc, CONV),
        (CPU, AUTO, INT8, None, Integers, AUTO),
        (CPU, AUTO, FP32, INT8, Integers, AUTO),
    ],
)
def test_target_precision_and_convolution_gradient_decide(
    target: Target,
    asked: ConvGradient,
    precision: Precision,
    saliency: Precision | None,
    words: type[Portable],
    conv_gradient: ConvGradient,
) -> None:
    found = lowering_for(target, asked, precision=precision, saliency=saliency)
    assert (found.words, found.conv_gradient) == (words, conv_gradient)
    assert type(found.writer(opset=20)) is words


@pytest.mark.parametrize("words", [PackedFp16, Nchwc, Integers])
def test_a_target_overrides_words_and_adds_none(words: type[Portable]) -> None:
    """A rule that asks a target for something that only one has would know of targets."""
    public = {name for name in vars(words) if not name.startswith("_")}
    assert public <= {name for name in dir(Portable) if not name.startswith("_")}
