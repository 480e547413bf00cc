"""Options that several commands take, declared once: the same word means the same everywhere.

A command names a dataclass of options as one parameter, and :func:`expanded` makes options of its fields.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from sad_runtime.choices import ConvGradient, Precision, Ranges, Target
from sad_runtime.errors import UserError
from sad_runtime.manifest import ExifOrientation, Interpolation

if TYPE_CHECKING:
    from sad_export import GraphOptions
    from sad_runtime.bare_graph import BareOptions

GRAPH = "Graph"
RESULT = "Result"

DEFAULT_BUNDLE = Path("sad-model")

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A calibrated bundle.")]
ForwardArgument = Annotated[
    Path, typer.Argument(metavar="FORWARD.onnx", help="A classifier: images → logits, or probabilities.")
]
TargetChoice = Annotated[
    Target,
    typer.Option(
        metavar="|".join(Target),
        help="cpu: the same results, faster in onnxruntime on the CPU.",
        rich_help_panel=GRAPH,
    ),
]
TargetOfForm = Annotated[
    Target | None,
    typer.Option(
        metavar="|".join(Target),
        help="Write this form alone. portable: for every runtime; cpu: the same results, faster in "
        "onnxruntime on the CPU.",
        show_default="portable; a bundle gets both",
        rich_help_panel=GRAPH,
    ),
]
ConvGradientChoice = Annotated[
    ConvGradient,
    typer.Option(
        metavar="|".join(ConvGradient),
        help="How the gradient of convolutions is written; auto: as an engine shares weights, and conv where "
        "TensorRT has no kernel for that.",
        rich_help_panel=GRAPH,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON, for programs.", rich_help_panel=RESULT)
]


@dataclasses.dataclass(frozen=True)
class ReadingOptions:
    """How a classifier that is a bare graph is read, where the file leaves it open."""

    logits: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The output that holds the logits, where there are several.",
            show_default=False,
            rich_help_panel=GRAPH,
        ),
    ] = None
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|H,W",
            help="Side, or height and width, of images, where the graph takes any.",
            show_default=False,
            rich_help_panel=GRAPH,
        ),
    ] = None

    def size(self) -> tuple[int, int] | None:
        """Height and width.

        Raises:
            UserError: Not one or two positive numbers.
        """
        if self.image_size is None:
            return None
        parts = self.image_size.split(",")
        if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            raise UserError(
                f"--image-size takes a side or height,width in pixels, got {self.image_size!r}",
                hint="for example --image-size 224, or 224,320",
            )
        return int(parts[0]), int(parts[-1])


_IMAGES = "Images"


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """How images come to the network: mean and std go into its graph, the rest is said in its metadata."""

    mean: Annotated[
        str | None,
        typer.Option(
            metavar="X,X,X",
            help="Per channel; put into the graph with --std.",
            show_default="the graph takes images as they are",
            rich_help_panel=_IMAGES,
        ),
    ] = None
    std: Annotated[
        str | None,
        typer.Option(
            metavar="X,X,X", help="Per channel, with --mean.", show_default=False, rich_help_panel=_IMAGES
        ),
    ] = None
    resize: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="What the file says to infer: the shorter side after the resize; the middle is cut out.",
            show_default="nothing: to the graph's height and width",
            rich_help_panel=_IMAGES,
        ),
    ] = None
    interpolation: Annotated[
        Interpolation | None,
        typer.Option(
            help="Likewise: filter of the resize.", show_default="nothing: bilinear", rich_help_panel=_IMAGES
        ),
    ] = None
    exif_orientation: Annotated[
        ExifOrientation | None,
        typer.Option(
            help="Likewise: whether the camera's tag turns the image.",
            show_default="nothing: apply",
            rich_help_panel=_IMAGES,
        ),
    ] = None
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Likewise: names of the classes in the order of the logits, one a line.",
            show_default="nothing: numbers",
            rich_help_panel=_IMAGES,
        ),
    ] = None

    def options(self) -> BareOptions:
        """For the exporter.

        Raises:
            UserError: ``--mean`` or ``--std`` is no list of numbers.
        """
        from sad_runtime.bare_graph import BareOptions

        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return BareOptions(**given | {name: numbers(given[name], f"--{name}") for name in ("mean", "std")})


@dataclasses.dataclass(frozen=True)
class GraphChoices:
    """In which form a two-pass graph is written; see :class:`sad_export.GraphOptions`."""

    precision: Annotated[
        Precision,
        typer.Option(
            metavar="|".join(Precision), help="Type that the graph computes in.", rich_help_panel=GRAPH
        ),
    ] = Precision.FP32
    saliency_precision: Annotated[
        Precision | None,
        typer.Option(
            metavar="NAME",
            help="Another type for the first pass and the gradient.",
            show_default="as --precision",
            rich_help_panel=GRAPH,
        ),
    ] = None
    ranges: Annotated[
        Ranges | None,
        typer.Option(
            metavar="|".join(Ranges),
            help="int8: how ranges are found on real images.",
            show_default="percentile",
            rich_help_panel=GRAPH,
        ),
    ] = None
    target: TargetOfForm = None
    conv_gradient: ConvGradientChoice = ConvGradient.AUTO
    allow_inaccurate: Annotated[
        bool,
        typer.Option(
            "--allow-inaccurate",
            help="Keep a graph also below its tolerance.",
            rich_help_panel=GRAPH,
        ),
    ] = False

    @property
    def label(self) -> str:
        """The precision as a manifest has it: ``fp32``, ``fp32-fp16``."""
        second = self.saliency_precision
        return self.precision if second in (None, self.precision) else f"{self.precision}-{second}"

    def options(self) -> GraphOptions:
        """For the exporter.

        Raises:
            UserError: They do not go together.
        """
        from sad_export import GraphOptions

        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return GraphOptions(**given | {"target": self.target or Target.PORTABLE})


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters that are dataclasses are replaced by an option for each of their fields."""
    groups: dict[str, Any] = {}
    parameters = []
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if dataclasses.is_dataclass(kind):
            groups[parameter.name] = kind
            parameters += _fields_of(kind)
        else:
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def taking_options(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in dataclasses.fields(kind)})
        command(**given)

    del taking_options.__wrapped__  # its signature is not this one's
    taking_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    taking_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return taking_options


def _fields_of(kind: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(kind)
    ]


def option_names(given: Mapping[str, bool]) -> list[str]:
    """Options by the names of their parameters, where they were given."""
    return [f"--{name.replace('_', '-')}" for name, is_given in given.items() if is_given]


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Numbers separated by commas.

    Raises:
        UserError: Something else.
    """
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} takes comma-separated numbers, got {text!r}") from None


def check_forward(forward: Path) -> None:
    """Refuse what cannot be a graph's file.

    Raises:
        UserError: It has no name, as ``.`` and ``/``, or is a folder.
    """
    if not forward.name or forward.is_dir():
        raise UserError(f"{forward} is a folder; a classifier is an ONNX file")


def refuse_same_file(source: Path, out: Path) -> None:
    """Refuse to write over the graph that is read.

    Raises:
        UserError: ``out`` is ``source``.
    """
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"--out {out} is the graph that is read", hint="name another file")
