"""A bare forward graph to a verified two-pass file: no bundle, no PyTorch, no recalibrated statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx

from sad_runtime.choices import Normalization
from sad_runtime.errors import UserError
from sad_runtime.files import Destination
from sad_runtime.tensorrt import EngineInfo, Flavor

from .model import GraphError, save_graph, warn
from .precision import FP32, Variant, refuse_half_precision, write_verified
from .tensorrt import EngineRequest, UnbuildableError
from .tensorrt.request import may_build_with_conv
from .tolerances import TOLERANCES
from .trial_images import read_images, smooth_noise
from .two_pass import two_pass
from .verify import Verification, run_graph
from .verify_forward import ForwardVerification, verify_forward

IMAGES_VERIFIED = 16
IMAGES_IN_INT8 = 64
"""Every second one gives the ranges."""


@dataclasses.dataclass(frozen=True)
class ForwardExport:
    """What was written.

    Attributes:
        graph: The two-pass file.
        bytes: Its size.
        dgrad: How its convolutions are differentiated: as asked, but ``conv`` where no engine could be built
            of ``auto``.
        verification: Figures of the float32 graph against the forward graph.
        engine: The engine beside it, if one was built.
        lowered: Figures of the file against the float32 graph, in lower precision.
        shortfalls: Those outside their tolerance; empty unless ``allow_inaccurate`` kept it.
    """

    graph: Path
    bytes: int
    dgrad: str
    verification: ForwardVerification
    engine: EngineInfo | None
    lowered: Verification | None = None
    shortfalls: tuple[str, ...] = ()


def export_forward(
    forward: Path,
    out: Path,
    *,
    eta: float,
    normalization: Normalization = Normalization.NONE,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    images: Path | None = None,
    logits: str | None = None,
    dgrad: str = "auto",
    target: str = "portable",
    variant: Variant = FP32,
    allow_inaccurate: bool = False,
    engine: EngineRequest | None = None,
    status: Callable[[str], None] = lambda message: None,
    notice: Callable[[str], None] = warn,
) -> ForwardExport:
    """Build, verify and write the two-pass graph of an ONNX classifier.

    Args:
        forward: The forward graph.
        out: Where the two-pass graph goes; an engine goes beside it as ``NAME.FLAVOR.plan``.
        eta: Hybridization ratio.
        normalization: How S is scaled.
        mean: Per channel; with ``std``, put into the graph.
        std: Per channel.
        images: Folder of real images to verify on, 16 of them, and 64 for the ranges of int8. Without one,
            smoothed noise stands in, but for int8.
        logits: Name of the logits where the graph has several outputs.
        dgrad: How convolutions are differentiated.
        target: ``portable`` or ``cpu``; float32 and int8 only.
        variant: The precision of the second pass and that of the saliency.
        allow_inaccurate: Keep a graph in lower precision whose figures are outside their tolerance.
        engine: What to build with TensorRT, if anything.
        status: Told what is being done.
        notice: Told what of the graph is taken otherwise than it stands; see :func:`sad_export.two_pass`.

    Raises:
        UserError: The graph, an argument or an image folder cannot be used, the check failed, or TensorRT
            refused; nothing was written.
    """
    variant.check_target(target)
    if variant.uses_int8 and images is None:
        raise UserError(
            "the ranges of int8 are those of real images, and none were given",
            hint="--images FOLDER, with images like those that will be classified",
        )
    flavor = engine.check() if engine else None
    destination = Destination.of(out, regular=flavor is not None)
    destination.check()
    if flavor is not None:
        for beside in (engine_beside(out, flavor), engine_beside(out, flavor).with_suffix(".json")):
            Destination.of(beside, regular=True)

    def written_as(dgrad: str) -> onnx.ModelProto:
        return two_pass(
            forward,
            eta=eta,
            normalization=normalization,
            dgrad=dgrad,
            target=variant.graph_target(target),
            logits=logits,
            mean=mean,
            std=std,
            notice=notice,
        )

    chosen_dgrad = variant.dgrad(dgrad)
    graph = written_as(chosen_dgrad)
    image = graph.graph.input[0].type.tensor_type
    batch_dim, *chw = image.shape.dim
    problems = []
    if not batch_dim.dim_param and batch_dim.HasField("dim_value"):
        problems.append(f"its batch is fixed to {batch_dim.dim_value}")
    if image.elem_type != onnx.TensorProto.FLOAT:
        problems.append(f"its input is {onnx.TensorProto.DataType.Name(image.elem_type).lower()}")
    if problems:
        raise GraphError(
            f"{forward} cannot be deployed: {' and '.join(problems)}",
            hint="export it in float32 with a dynamic batch",
        )
    refuse_half_precision(graph)
    channels, height, width = (dim.dim_value for dim in chw)
    count = IMAGES_IN_INT8 if variant.uses_int8 else IMAGES_VERIFIED
    pixels = (
        read_images(images, count, channels, height, width)
        if images
        else smooth_noise(IMAGES_VERIFIED, channels, height, width)
    )
    with destination.folder() as folder:
        draft = folder / out.name

        def verified(
            graph: onnx.ModelProto,
        ) -> tuple[ForwardVerification, Verification | None, list[str]]:
            save_graph(graph, draft)
            verification = verify_forward(
                draft,
                forward,
                pixels[:: max(1, len(pixels) // IMAGES_VERIFIED)],
                eta=eta,
                normalization=normalization,
                clip=None,
                mean=mean,
                std=std,
                logits=logits,
            )
            if variant.is_fp32:
                return verification, None, []
            in_float32 = run_graph(draft, pixels)
            lowered = write_verified(
                graph, draft, variant, pixels, in_float32, target=target, allow_inaccurate=allow_inaccurate
            )
            return verification, lowered, lowered.shortfalls(TOLERANCES[variant.lowest])

        verification, lowered, shortfalls = verified(graph)
        info = None
        if engine is not None and flavor is not None:
            plan = engine_beside(out, flavor)
            try:
                info = engine.build(draft, draft.with_name(plan.name))
            except UnbuildableError as error:
                if not may_build_with_conv(error, graph_dgrad=chosen_dgrad, asked=dgrad):
                    raise
                status(f"{error.message}; writing the graph with --dgrad conv instead")
                chosen_dgrad = "conv"
                verification, lowered, shortfalls = verified(written_as(chosen_dgrad))
                info = engine.build(draft, draft.with_name(plan.name))
            for made in (plan, plan.with_suffix(".json")):
                Destination.of(made, regular=True).put(draft.with_name(made.name))
        size = draft.stat().st_size
        destination.put(draft)
    return ForwardExport(out, size, chosen_dgrad, verification, info, lowered, tuple(shortfalls))


def engine_beside(graph: Path, flavor: Flavor) -> Path:
    """Where the engine of a bare graph lies: ``NAME.FLAVOR.plan``."""
    return graph.with_suffix(f".{flavor}.plan")
