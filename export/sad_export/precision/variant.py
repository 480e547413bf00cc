"""Which element type each part of a two-pass graph computes in, and what such a variant is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir

from sad_runtime.choices import Precision, Ranges, Target, choose
from sad_runtime.errors import UserError

from ..graph.opset import BF16_OPSET, MINIMUM_OPSET
from ..parts import Part

DTYPES: Mapping[Precision, ir.DataType] = {
    Precision.FP32: ir.DataType.FLOAT,
    Precision.FP16: ir.DataType.FLOAT16,
    Precision.BF16: ir.DataType.BFLOAT16,
    Precision.INT8: ir.DataType.INT8,
}
"""What ONNX calls each precision."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """The precisions of one graph.

    Attributes:
        precision: Of the second pass, which classifies.
        saliency: Of the first pass and the backward, which give S. With ``int8`` the backward is in fp16, but
            for onnxruntime's CPU, where it is in int8 too.
        ranges: How the ranges of int8 are found.
    """

    precision: Precision
    saliency: Precision
    ranges: Ranges = Ranges.PERCENTILE

    @classmethod
    def of(cls, precision: str = "fp32", saliency: str | None = None, ranges: str | None = None) -> Variant:
        """From the words of the command line; without ``saliency`` both are the same.

        Raises:
            UserError: No such precision or ranges; or ranges without int8.
        """
        second, first = (choose(Precision, word, "precision") for word in (precision, saliency or precision))
        variant = cls(second, first, choose(Ranges, ranges or Ranges.PERCENTILE, "way of finding ranges"))
        if ranges is not None and not variant.uses_int8:
            raise UserError(
                f"--ranges are those of int8, and {variant.label} has none",
                hint="leave them out, or use --precision int8",
            )
        return variant

    @property
    def label(self) -> str:
        """``fp16``; ``fp32-fp16`` for a saliency in fp16 under a second pass in fp32."""
        same = self.precision is self.saliency
        return self.precision.value if same else f"{self.precision}-{self.saliency}"

    @property
    def is_fp32(self) -> bool:
        """Whether nothing is to be lowered."""
        return self.lowest is Precision.FP32

    @property
    def uses_bf16(self) -> bool:
        """Whether some part is in bf16, which onnxruntime's CPU cannot run."""
        return Precision.BF16 in (self.precision, self.saliency)

    @property
    def uses_int8(self) -> bool:
        """Whether some pass is in int8."""
        return Precision.INT8 in (self.precision, self.saliency)

    @property
    def least_opset(self) -> int:
        """The version of the default domain that its operators need."""
        return BF16_OPSET if self.uses_bf16 else MINIMUM_OPSET

    @property
    def int8_passes(self) -> frozenset[Part]:
        """The passes in int8."""
        passes = {Part.SECOND: self.precision, Part.FIRST: self.saliency}
        return frozenset(part for part, precision in passes.items() if precision is Precision.INT8)

    @property
    def of_part(self) -> Mapping[Part, Precision]:
        """The element type of every part; what is in int8 is so between float32 values."""
        saliency = Precision.FP32 if self.saliency is Precision.INT8 else self.saliency
        return {
            Part.SPACE: Precision.FP32,
            Part.FIRST: saliency,
            Part.BACKWARD: Precision.FP16 if self.saliency is Precision.INT8 else self.saliency,
            Part.MIX: Precision.FP32,
            Part.SECOND: Precision.FP32 if self.precision is Precision.INT8 else self.precision,
        }

    @property
    def lowest(self) -> Precision:
        """The coarser of the two, by the bits of its significand: fp32, fp16, bf16, int8."""
        return Precision.lowest_of(self.label)

    def suffixed(self, name: str, target: str = Target.PORTABLE) -> str:
        """A file's name in this variant: ``model.onnx``, in int8 for a CPU ``model.int8.cpu.onnx``."""
        stem, _, suffix = name.rpartition(".")
        parts = [stem] if self.is_fp32 else [stem, self.label]
        if target != Target.PORTABLE:
            parts.append(target)
        return ".".join([*parts, suffix])

    @property
    def has_cpu_form(self) -> bool:
        """Whether onnxruntime's CPU has a form of its own for these precisions."""
        return not {self.precision, self.saliency} & {Precision.FP16, Precision.BF16}

    def check_target(self, target: str) -> None:
        """Refuse half precision for onnxruntime's CPU.

        Raises:
            UserError: It was asked for.
        """
        if target == "cpu" and not self.has_cpu_form:
            raise UserError(
                f"--target cpu is for fp32 and int8, not {self.label}: onnxruntime's CPU computes fp16 in "
                "float32 with casts between, which takes longer, and bf16 not at all",
                hint="leave out --target cpu, or try --precision int8",
            )


FP32 = Variant(Precision.FP32, Precision.FP32)
"""Everything in float32."""
