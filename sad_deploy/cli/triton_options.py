"""The options of ``export --triton``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sad_runtime.bundle import Bundle
from sad_runtime.choices import TritonBackend, TritonDevice, TritonImages, TritonInput
from sad_runtime.errors import BundleError, UserError

from .console import print_status
from .options import option_names

if TYPE_CHECKING:
    from ..triton import TritonRequest, Written

_PANEL = "Triton Inference Server"


@dataclasses.dataclass(frozen=True)
class TritonOptions:
    """The model repository's options as they were given; see :class:`sad_deploy.triton.TritonRequest`.

    Raises:
        UserError: Options of a repository where none is written.
    """

    triton: Annotated[
        Path | None,
        typer.Option(
            metavar="REPO",
            help="Add the graph or engine to this model repository. What the bundle has already is not "
            "exported again.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None
    triton_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of the model.", show_default="the bundle's folder", rich_help_panel=_PANEL
        ),
    ] = None
    triton_backend: Annotated[
        TritonBackend,
        typer.Option(metavar="|".join(TritonBackend), help="What runs it.", rich_help_panel=_PANEL),
    ] = TritonBackend.ONNXRUNTIME
    triton_device: Annotated[
        TritonDevice,
        typer.Option(
            metavar="|".join(TritonDevice),
            help="Where; auto: on GPUs where Triton sees some.",
            rich_help_panel=_PANEL,
        ),
    ] = TritonDevice.AUTO
    triton_input: Annotated[
        TritonInput,
        typer.Option(
            "--triton-input",
            "--input",
            metavar="|".join(TritonInput),
            help="What clients send: (C, H, W) floats in [0, 1], or (H, W, C) bytes of the same size.",
            rich_help_panel=_PANEL,
        ),
    ] = TritonInput.FLOAT
    triton_images: Annotated[
        TritonImages,
        typer.Option(
            metavar="|".join(TritonImages),
            help="Who decodes and resizes; server: NAME_images takes image files.",
            rich_help_panel=_PANEL,
        ),
    ] = TritonImages.CLIENT
    triton_instances: Annotated[
        int, typer.Option(min=1, metavar="N", help="Copies on each device.", rich_help_panel=_PANEL)
    ] = 1

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) != field.default for field in dataclasses.fields(self)}
        if self.triton is None and (names := option_names(given)):
            raise UserError(f"{', '.join(names)}: only with --triton, which writes a model repository")

    def request(self) -> TritonRequest | None:
        """What the writer takes, if a repository is asked for.

        Raises:
            UserError: The options contradict each other.
        """
        if self.triton is None:
            return None
        from ..triton import TritonRequest

        prefix = "triton_"
        given = {
            field.name.removeprefix(prefix): getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name.startswith(prefix)
        }
        return TritonRequest(self.triton, **given)


def has_graph(bundle: Bundle, label: str) -> bool:
    """Whether a bundle has a graph of a precision already."""
    try:
        bundle.graph(label)
    except BundleError:
        return False
    return True


def print_models(written: list[Written]) -> None:
    """A line for each model, and how to serve them."""
    for each in written:
        print_status(
            f"{each.model}: version {each.version}{'' if each.is_new else ', which was there already'}"
        )
    print_status(f"serve with: tritonserver --model-repository={written[0].model.parent.resolve()}")
