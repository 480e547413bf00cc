"""Options of the commands that run a bundle or a bare graph: what such a graph does not say of itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sad_runtime.errors import UserError
from sad_runtime.manifest import ExifOrientation, Interpolation

from .console import print_note
from .options import numbers

if TYPE_CHECKING:
    from sad_runtime.bundle import Bundle

_BARE = "A bare graph"


@dataclasses.dataclass(frozen=True)
class BareChoices:
    """What a bare graph does not say of itself; see :class:`sad_runtime.bare_graph.BareOptions`."""

    resize: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Shorter side after the resize; the middle is cut out of it.",
            show_default="the file's, else to its height and width",
            rich_help_panel=_BARE,
        ),
    ] = None
    interpolation: Annotated[
        Interpolation | None,
        typer.Option(
            help="Filter of the resize.", show_default="the file's, else bilinear", rich_help_panel=_BARE
        ),
    ] = None
    exif_orientation: Annotated[
        ExifOrientation | None,
        typer.Option(
            help="Whether the camera's tag turns the image.",
            show_default="the file's, else apply",
            rich_help_panel=_BARE,
        ),
    ] = None
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Names of the classes in the order of the logits, one a line.",
            show_default="the file's, else numbers",
            rich_help_panel=_BARE,
        ),
    ] = None

    plain: Annotated[
        bool,
        typer.Option(
            "--plain",
            help="The graph is a classifier without a defence.",
            rich_help_panel=_BARE,
        ),
    ] = False
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="X,X,X",
            help="With --plain: per channel, where the graph has it not inside.",
            show_default=False,
            rich_help_panel=_BARE,
        ),
    ] = None
    std: Annotated[
        str | None,
        typer.Option(
            metavar="X,X,X", help="Per channel, with --mean.", show_default=False, rich_help_panel=_BARE
        ),
    ] = None

    def opened(self, bundle: Path) -> Bundle:
        """A bundle's folder, or a bare graph's file, as a bundle.

        Raises:
            UserError: It cannot be used; or options of a bare graph for a bundle.
        """
        from sad_runtime.bare_graph import BareOptions, bundle_of_graph
        from sad_runtime.bundle import Bundle

        options = BareOptions(
            resize=self.resize,
            interpolation=self.interpolation,
            exif_orientation=self.exif_orientation,
            classes=self.classes,
            mean=numbers(self.mean, "--mean"),
            std=numbers(self.std, "--std"),
        )
        if self.plain:
            from sad_runtime.plain_graph import bundle_of_classifier

            return bundle_of_classifier(bundle, options, notice=print_note)
        if bundle.suffix == ".onnx" and not bundle.is_dir():
            return bundle_of_graph(bundle, options)
        if options.given:
            raise UserError(f"{', '.join(options.given)}: only for a bare graph; a bundle says it itself")
        return Bundle.open(bundle)
