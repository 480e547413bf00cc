"""The options of an engine. Nothing is imported for it before it is built."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from sad_runtime.choices import FlavorChoice, HardwareCompatibility, Target
from sad_runtime.errors import UserError

from .console import is_verbose, print_log, print_status, print_warning
from .options import option_names

if TYPE_CHECKING:
    from sad_export import EngineInfo, EngineRequest

_PANEL = "TensorRT engine"


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """The engine's options as they were given; see :class:`sad_export.EngineRequest`.

    Raises:
        UserError: Options of an engine where none is built, or a batch that is none.
    """

    trt: Annotated[
        bool,
        typer.Option(
            "--trt", help="Build a TensorRT engine too (RTX: needs no GPU).", rich_help_panel=_PANEL
        ),
    ] = False
    flavor: Annotated[
        FlavorChoice,
        typer.Option(
            metavar="|".join(FlavorChoice),
            help="Which TensorRT builds it; auto: enterprise where it and a GPU are there, else RTX.",
            rich_help_panel=_PANEL,
        ),
    ] = FlavorChoice.AUTO
    batch: Annotated[
        str,
        typer.Option(
            metavar="MIN:BEST:MAX", help="Batch sizes that the engine serves.", rich_help_panel=_PANEL
        ),
    ] = "1:8:64"
    optimization_level: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=5,
            metavar="0..5",
            help="How long the builder searches.",
            show_default="TensorRT's",
            rich_help_panel=_PANEL,
        ),
    ] = None
    gpu_target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="sm_XX|current",
            help="RTX: build for this GPU; may be repeated.",
            show_default="sm_80 and newer",
            rich_help_panel=_PANEL,
        ),
    ] = None
    hardware_compatibility: Annotated[
        HardwareCompatibility,
        typer.Option(
            metavar="|".join(HardwareCompatibility),
            help="Enterprise: which GPUs besides the one it is built on.",
            rich_help_panel=_PANEL,
        ),
    ] = HardwareCompatibility.NONE
    tf32: Annotated[
        bool,
        typer.Option(
            "--tf32", help="Let float32 products be rounded to TF32; faster.", rich_help_panel=_PANEL
        ),
    ] = False
    verbose: Annotated[
        bool,
        typer.Option("--verbose", help="Show TensorRT's own log on stderr.", rich_help_panel=_PANEL),
    ] = False
    no_engine_cache: Annotated[
        bool,
        typer.Option(
            "--no-engine-cache",
            help="Build again; by default engines are kept in ~/.cache/sad-deploy.",
            rich_help_panel=_PANEL,
        ),
    ] = False

    def __post_init__(self) -> None:
        _ = self.profile
        given = {field.name: getattr(self, field.name) != field.default for field in dataclasses.fields(self)}
        given["gpu_target"] = bool(self.gpu_target)  # an empty list is none
        if not self.trt and (names := option_names(given)):
            raise UserError(f"{', '.join(names)}: only with --trt, which builds an engine")

    @property
    def profile(self) -> tuple[int, int, int]:
        """Smallest, best and largest batch.

        Raises:
            UserError: They are not.
        """
        parts = self.batch.split(":")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise UserError(f"--batch is MIN:BEST:MAX, got {self.batch!r}", hint="for example --batch 1:8:64")
        smallest, best, largest = map(int, parts)
        if not 1 <= smallest <= best <= largest:
            raise UserError(
                f"--batch must ascend from at least 1, got {self.batch!r}", hint="for example --batch 1:8:64"
            )
        return smallest, best, largest

    def request(self, target: Target | None) -> EngineRequest | None:
        """What the exporter takes, if an engine is asked for.

        Raises:
            UserError: It is asked for of a graph that is not for TensorRT.
        """
        if not self.trt:
            return None
        if target is Target.CPU:
            raise UserError(
                "--trt builds its engine from the portable graph", hint="leave out --target cpu, or --trt"
            )
        from sad_export import BuildOptions, EngineCache, EngineRequest

        return EngineRequest(
            flavor=self.flavor,
            batch=self.profile,
            options=BuildOptions(
                optimization_level=self.optimization_level,
                targets=tuple(self.gpu_target or ()),
                hardware_compatibility=self.hardware_compatibility,
                tf32=self.tf32,
            ),
            cache=None if self.no_engine_cache else EngineCache(on_message=print_warning),
            log=(lambda line: print_log(f"TensorRT {line}")) if self.verbose or is_verbose() else None,
        )


def print_engine(info: EngineInfo) -> None:
    """One line on stderr: what was built."""
    smallest, best, largest = info.batch
    made = "taken from the cache, " if info.from_cache else ""
    print_status(
        f"TensorRT engine: {info.bytes / 1e6:.2f} MB, {info.flavor} {info.version}, {info.precision}, "
        f"batch {smallest} to {largest} (best {best}), {made}built in {info.seconds:.1f} s; "
        f"runs on {', '.join(info.targets)}"
    )
