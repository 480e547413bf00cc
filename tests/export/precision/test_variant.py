"""Names of the variants, and what can be said of them before any graph is read."""

from __future__ import annotations

import pytest

from sad_export.precision import FP32, Variant
from sad_runtime.choices import Precision
from sad_runtime.errors import UserError


@pytest.mark.parametrize(
    ("words", "label", "file", "lowest"),
    [
        (("fp32", None), "fp32", "model.onnx", Precision.FP32),
        (("fp16", None), "fp16", "model.fp16.onnx", Precision.FP16),
        (("bf16", "bf16"), "bf16", "model.bf16.onnx", Precision.BF16),
        (("fp32", "fp16"), "fp32-fp16", "model.fp32-fp16.onnx", Precision.FP16),
        (("fp16", "bf16"), "fp16-bf16", "model.fp16-bf16.onnx", Precision.BF16),
    ],
)
def test_every_variant_has_a_name_and_a_file_of_its_own(
    words: tuple[str, str | None], label: str, file: str, lowest: Precision
) -> None:
    variant = Variant.of(*words)
    assert (variant.label, variant.suffixed("model.onnx"), variant.lowest) == (label, file, lowest)


def test_a_precision_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(UserError, match="no precision 'int4'; there are fp32, fp16, bf16"):
        Variant.of("fp32", "int4")


def test_the_cpu_target_takes_no_half_precision() -> None:
    FP32.check_target("cpu")
    Variant.of("fp16").check_target("portable")
    with pytest.raises(UserError, match="fp32-fp16: onnxruntime's CPU computes fp16 in float32"):
        Variant.of("fp32", "fp16").check_target("cpu")
