"""A bare forward graph to a verified two-pass file: no bundle, no PyTorch, no recalibrated statistics."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from sad_runtime.bare_graph import BareOptions, stated
from sad_runtime.choices import Normalization
from sad_runtime.errors import UserError
from sad_runtime.files import Destination
from sad_runtime.tensorrt import EngineInfo, Flavor
from sad_runtime.verification import TOLERANCES, Verification

from .graph.errors import GraphError
from .graph.expression import Array
from .graph.values import dtype_of, shape_of, static
from .graph.write import save_graph
from .job import GraphOptions, write_and_build
from .loading import ForwardGraph, Reading, load_classifier, warn
from .precision import write_verified
from .tensorrt import EngineRequest
from .trial_images import read_images, smooth_noise
from .two_pass import Defence, defended
from .verify import run_graph
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
        conv_gradient: How its convolutions are differentiated: as asked, but ``conv`` where no engine could
            be built of ``auto``.
        verification: Figures of the float32 graph against the forward graph.
        engine: The engine beside it, if one was built.
        lowered: Figures of the file against the float32 graph, in lower precision.
        shortfalls: Those outside their tolerance; empty unless ``allow_inaccurate`` kept it.
    """

    graph: Path
    bytes: int
    conv_gradient: str
    verification: ForwardVerification
    engine: EngineInfo | None
    lowered: Verification | None = None
    shortfalls: tuple[str, ...] = ()


def defend(
    forward: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    eta: float,
    normalization: str = Normalization.NONE,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    logits: str | None = None,
    image_size: tuple[int, int] | None = None,
    images: str | os.PathLike[str] | None = None,
    bare: BareOptions = BareOptions(),  # noqa: B008 -- frozen
    options: GraphOptions = GraphOptions(),  # noqa: B008 -- frozen
    engine: EngineRequest | None = None,
    status: Callable[[str], None] = lambda message: None,
    notice: Callable[[str], None] = warn,
) -> ForwardExport:
    """Write the two-pass graph of an ONNX classifier, verified, and an engine if asked for.

    Args:
        forward: The forward graph.
        out: Where the two-pass graph goes; an engine goes beside it as ``NAME.FLAVOR.plan``.
        eta: Hybridization ratio.
        normalization: How S is scaled: ``none``, ``rms``, ``linf`` or ``sign``.
        mean: Per channel; with ``std``, put into the graph.
        std: Per channel.
        logits: Name of the logits where the graph has several outputs.
        image_size: Height and width, for a graph that leaves them open.
        images: Folder of real images, 16 to verify on, 64 for int8; smoothed noise otherwise, but for int8.
        bare: How images come to the classifier, and its classes, as the file is to say it; mean and std are
            arguments of their own.
        options: The form of the graph.
        engine: What to build with TensorRT, if anything.
        status: Called with what is being done.
        notice: Called with a line for everything of the graph that is taken otherwise than it stands.

    Raises:
        UserError: Unusable graph, argument or images; failed check; TensorRT's refusal. Nothing was written.
    """
    if options.variant.uses_int8 and images is None:
        raise UserError(
            "the ranges of int8 are those of real images, and none were given",
            hint="--images FOLDER, with images like those that will be classified",
        )
    defence = Defence(eta, normalization, mean=mean, std=std)
    flavor = engine.check() if engine else None
    names = [Path(out), *(engine_files(out, flavor) if flavor else ())]
    places = [Destination.of(name, regular=flavor is not None) for name in names]
    places[0].check()
    reading = Reading(logits, image_size, options.variant.least_opset, in_float32=True)
    graph = load_classifier(Path(forward), reading)
    for each in graph.notices:
        notice(each)
    _, *chw = graph.image_shape
    channels, height, width = (static(side) for side in chw)
    said = stated(bare, Path(forward), (channels, height, width), graph.num_classes)
    pictures = None if images is None else Path(images)
    writer = _Writer(Path(forward), graph, defence, logits, pictures, options, said)
    with places[0].folder() as folder:
        file, *plan = (folder / name.name for name in names)
        build = functools.partial(engine.build, file, plan[0]) if engine else None
        made = write_and_build(functools.partial(writer.write, file), build, options, status)
        size = file.stat().st_size
        for place in reversed(places):
            place.put(folder / place.path.name)
    return ForwardExport(Path(out), size, made.conv_gradient, engine=made.engine, **vars(made.figures))


@dataclasses.dataclass(frozen=True)
class _Checked:
    """Figures of a two-pass file; see :class:`ForwardExport`."""

    verification: ForwardVerification
    lowered: Verification | None = None
    shortfalls: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Writes the two-pass graph of a forward graph, and compares both."""

    forward: Path
    graph: ForwardGraph
    defence: Defence
    logits: str | None
    images: Path | None
    options: GraphOptions
    stated: Mapping[str, str]

    def write(self, path: Path, conv_gradient: str) -> _Checked:
        """One graph, with the gradient of its convolutions written so.

        Raises:
            UserError: It cannot be written, or is not what it should be.
        """
        variant = self.options.variant
        form = dataclasses.replace(self.options, conv_gradient=conv_gradient)
        graph = defended(self.graph.copy(), self.defence, form.lowering, self.stated)
        pixels = self._pixels(*_image_shape(graph, self.forward))
        save_graph(graph, path)
        verification = verify_forward(
            path,
            self.forward,
            pixels[:: max(1, len(pixels) // IMAGES_VERIFIED)],
            self.defence,
            logits=self.logits,
            form=self.graph.form,
        )
        if variant.is_fp32:
            return _Checked(verification)
        lowered = write_verified(
            graph,
            path,
            variant,
            pixels,
            run_graph(path, pixels),
            target=self.options.target,
            allow_inaccurate=self.options.allow_inaccurate,
        )
        return _Checked(verification, lowered, tuple(lowered.shortfalls(TOLERANCES[variant.lowest])))

    def _pixels(self, channels: int, height: int, width: int) -> Array:
        if self.images is None:
            return smooth_noise(IMAGES_VERIFIED, channels, height, width)
        count = IMAGES_IN_INT8 if self.options.variant.uses_int8 else IMAGES_VERIFIED
        return read_images(self.images, count, channels, height, width)


def _image_shape(graph: ir.Model, forward: Path) -> tuple[int, int, int]:
    """C, H, W of a two-pass graph's image.

    Raises:
        GraphError: Its batch is fixed, or it is not of float32.
    """
    image = graph.graph.inputs[0]
    batch, *chw = shape_of(image)
    problems = []
    if isinstance(batch, int):
        problems.append(f"its batch is fixed to {batch}")
    if image.dtype != ir.DataType.FLOAT:
        problems.append(f"its input is {dtype_of(image).name.lower()}")
    if problems:
        raise GraphError(
            f"{forward} cannot be deployed: {' and '.join(problems)}",
            hint="export it in float32 with a dynamic batch",
        )
    channels, height, width = (static(dim) for dim in chw)
    return channels, height, width


def engine_files(graph: str | os.PathLike[str], flavor: Flavor) -> tuple[Path, Path]:
    """Where the engine of a bare graph lies, and its sidecar: ``NAME.FLAVOR.plan`` and ``.json``."""
    plan = Path(graph).with_suffix(f".{flavor}.plan")
    return plan, plan.with_suffix(".json")
