"""How a target writes the words of the gradient rules, and what it rewrites in the forward graph.

One module or package a target; :func:`lowering_for` alone chooses. May import :mod:`sad_export.graph` and the
mathematics of :mod:`sad_export.gradient`; the rules import nothing from here.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from sad_runtime.choices import ConvGradient, Precision, Target, choose

from .integers import Integers, StridedStemPass
from .nchwc import Nchwc, NchwcAffinePass, NchwcBroadcastPass, NchwcGroupsPass
from .packed_fp16 import PackedFp16
from .portable import Portable
from .square_weights import SquareWeightsPass

__all__ = ["Lowering", "Portable", "lowering_for"]


@dataclasses.dataclass(frozen=True)
class Lowering:
    """What a graph is written with.

    Attributes:
        words: The class of its words.
        conv_gradient: How the gradient of a convolution is written.
        before: Rewrites of the forward graph, before it is differentiated.
        after: Rewrites of the whole graph, with its backward and all.
    """

    words: type[Portable]
    conv_gradient: ConvGradient
    before: tuple[ir.passes.InPlacePass, ...] = ()
    after: tuple[ir.passes.InPlacePass, ...] = ()

    def writer(self, *, opset: int) -> Portable:
        """Something to write a backward graph with."""
        return self.words(opset=opset, conv_gradient=self.conv_gradient)

    def prepare(self, model: ir.Model) -> None:
        """Rewrite a forward graph in place, before it is differentiated."""
        for step in self.before:
            step(model)

    def complete(self, model: ir.Model) -> None:
        """Rewrite a whole graph in place."""
        for step in self.after:
            step(model)


def lowering_for(
    target: str = Target.PORTABLE,
    conv_gradient: str = ConvGradient.AUTO,
    *,
    precision: Precision = Precision.FP32,
    saliency: Precision | None = None,
) -> Lowering:
    """The lowering of a graph; the only place that chooses one.

    Args:
        target: What it is for, a word of :class:`~sad_runtime.choices.Target`.
        conv_gradient: How the gradient of a convolution is written. ``auto`` depends on the rest: TensorRT
            has no deconvolution in bf16.
        precision: What the second pass will be lowered to.
        saliency: What the first pass and the gradient will be; the same by default.

    Raises:
        UserError: ``target`` or ``conv_gradient`` is another word.
    """
    saliency = saliency or precision
    is_cpu = choose(Target, target, "target") is Target.CPU
    form = choose(ConvGradient, conv_gradient, "convolution gradient")
    if is_cpu and Precision.INT8 in (precision, saliency):
        return Lowering(Integers, form, before=(StridedStemPass(),))
    if is_cpu:
        rewrites = (NchwcGroupsPass(), NchwcAffinePass())
        return Lowering(Nchwc, form, before=rewrites, after=(NchwcBroadcastPass(), SquareWeightsPass()))
    if form is ConvGradient.AUTO and saliency is Precision.BF16:
        form = ConvGradient.CONV
    words = PackedFp16 if saliency is Precision.FP16 else Portable
    # In int8 the backward reads what a DequantizeLinear gives, no weight of the forward pass.
    integers = Precision.INT8 in (precision, saliency)
    return Lowering(words, form, after=() if integers else (SquareWeightsPass(),))
