"""``sad-deploy gradient``: any ONNX classifier's input gradient as an ONNX graph; no SAD."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from sad_runtime.choices import ConvGradient, Method, Objective, Target, Way
from sad_runtime.errors import UserError
from sad_runtime.extras import require
from sad_runtime.files import Destination

from .console import print_json, print_note, print_status
from .options import (
    GRAPH,
    AsJson,
    ConvGradientChoice,
    ForwardArgument,
    ImageOptions,
    ReadingOptions,
    TargetChoice,
    check_forward,
    expanded,
    numbers,
    option_names,
    refuse_same_file,
)

_OBJECTIVES = "|".join("N" if word is Objective.CLASS else word for word in Objective)
_METHOD = "Method"


@dataclasses.dataclass(frozen=True)
class AttributionOptions:
    """What the graph says of an image; see :class:`sad_export.attribution.Attribution`."""

    of: Annotated[
        str,
        typer.Option(
            metavar=_OBJECTIVES,
            help="What it is the gradient of: the largest logit, that of class N, or what a further input "
            "says (a label, its cross-entropy, factors of all logits).",
            rich_help_panel=GRAPH,
        ),
    ] = Objective.LARGEST.value
    way: Annotated[
        Way | None,
        typer.Option(
            metavar="|".join(Way),
            help="Of a two-pass file, as an attack asks it, with --of loss or cotangent: of the first pass, "
            "of both with S held constant, or through S too.",
            show_default=False,
            rich_help_panel=GRAPH,
        ),
    ] = None
    at: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|last",
            help="What it is taken with respect to: a value of the graph by its name, or the last "
            "feature map.",
            show_default="the image; for gradcam the last feature map",
            rich_help_panel=GRAPH,
        ),
    ] = None
    method: Annotated[
        Method,
        typer.Option(
            metavar="|".join(Method),
            help="The gradient itself, Grad-CAM (output heatmap), integrated gradients (output attribution) "
            "or SmoothGrad.",
            rich_help_panel=_METHOD,
        ),
    ] = Method.SALIENCY
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="integrated: points of the integral; each is one more image in the batch.",
            show_default="32",
            rich_help_panel=_METHOD,
        ),
    ] = None
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="X|X,X,X",
            help="integrated: where the integral begins, one number or one a channel.",
            show_default="0",
            rich_help_panel=_METHOD,
        ),
    ] = None
    samples: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="smoothgrad: noisy images; each is one more in the batch.",
            show_default="16",
            rich_help_panel=_METHOD,
        ),
    ] = None
    noise: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="smoothgrad: standard deviation of the noise, as a part of the image's range.",
            show_default="0.15",
            rich_help_panel=_METHOD,
        ),
    ] = None
    noise_seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="smoothgrad: seed of the noise, which is a constant of the graph.",
            show_default="0",
            rich_help_panel=_METHOD,
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """For the exporter."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del given["way"]
        return given | {"baseline": numbers(self.baseline, "--baseline")}

    def refuse_with_way(self, image: ImageOptions, conv_gradient: ConvGradient) -> None:
        """Refuse what an attack's gradient has no use for.

        Raises:
            UserError: It was given.
        """
        given = [
            field.name
            for options in (self, image)
            for field in dataclasses.fields(options)
            if field.name not in ("of", "way") and getattr(options, field.name) != field.default
        ]
        if conv_gradient is not ConvGradient.AUTO:
            given.append("conv_gradient")
        if given:
            options = ", ".join(option_names(dict.fromkeys(given, True)))
            raise UserError(f"{options}: not with --way, which takes the file as it is shipped")


@expanded
def gradient(
    forward: ForwardArgument,
    *,
    attribution: AttributionOptions,
    image: ImageOptions,
    reading: ReadingOptions,
    target: TargetChoice = Target.PORTABLE,
    conv_gradient: ConvGradientChoice = ConvGradient.AUTO,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the graph goes.",
            show_default="FORWARD.gradient.onnx",
            rich_help_panel="Result",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add the gradient of the largest logit to an ONNX classifier: outputs logits and gradient.

    Or a map made of it: Grad-CAM, integrated gradients, SmoothGrad. Standard operators only, with a dynamic
    batch if the classifier has one. The graph is run and compared with the classifier before it is kept.
    """
    check_forward(forward)
    require("onnx_ir", extra="export", need="sad-deploy gradient")
    from sad_export import write_attack, write_gradient

    out = out or forward.with_suffix(".gradient.onnx")
    Destination.of(out)
    refuse_same_file(forward, out)
    read: dict[str, Any] = {"logits": reading.logits, "image_size": reading.size(), "target": target}
    if attribution.way is not None:
        attribution.refuse_with_way(image, conv_gradient)
        made = write_attack(forward, out, way=attribution.way, of=attribution.of, **read, notice=print_note)
    else:
        made = write_gradient(
            forward,
            out,
            **attribution.settings(),
            bare=image.options(),
            conv_gradient=conv_gradient,
            **read,
            notice=print_note,
        )
    if as_json:
        print_json({"graph": str(made.graph), "bytes": made.bytes, "outputs": list(made.outputs)})
    print_status(
        f"{out}: {made.bytes / 1e6:.2f} MB, run and compared with {forward}; "
        f"outputs {', '.join(made.outputs[:-1])} and {made.outputs[-1]}"
    )
