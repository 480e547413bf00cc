"""What ``export --trt`` is told about the engine. Nothing is imported for it before it is used."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from sad_runtime.choices import HardwareCompatibility
from sad_runtime.errors import UserError

from .console import print_warning, stderr

if TYPE_CHECKING:
    from sad_export.tensorrt import EngineRequest

PANEL = "TensorRT engine"
"""Where ``--help`` shows them."""

DEFAULT_BATCH = (1, 8, 64)


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """The engine's options as they were given.

    Attributes:
        flavor: ``auto``, ``tensorrt`` or ``rtx``.
        batch: Smallest, best and largest.
        optimization_level: 0 to 5; None is TensorRT's default.
        targets: GPUs that an RTX engine is for.
        hardware_compatibility: Of an enterprise engine.
        tf32: Whether float32 products may be rounded.
        verbose: Whether TensorRT's log is shown.
        no_cache: Whether the engine is neither taken from the cache nor kept there.
    """

    flavor: str
    batch: tuple[int, int, int]
    optimization_level: int | None
    targets: tuple[str, ...]
    hardware_compatibility: HardwareCompatibility
    tf32: bool
    verbose: bool
    no_cache: bool

    def refuse_any(self) -> None:
        """Refuse what says something about an engine where none is built.

        Raises:
            UserError: Some option was given; all are named.
        """
        given = {
            "--flavor": self.flavor != "auto",
            "--batch": self.batch != DEFAULT_BATCH,
            "--optimization-level": self.optimization_level is not None,
            "--gpu-target": bool(self.targets),
            "--hardware-compatibility": self.hardware_compatibility is not HardwareCompatibility.NONE,
            "--tf32": self.tf32,
            "--verbose": self.verbose,
            "--no-engine-cache": self.no_cache,
        }
        if names := [name for name, is_given in given.items() if is_given]:
            raise UserError(f"{', '.join(names)}: only with --trt, which builds an engine")

    def request(self) -> EngineRequest:
        """What the exporter takes."""
        from sad_export.tensorrt import BuildOptions, EngineCache, EngineRequest

        return EngineRequest(
            flavor=self.flavor,
            batch=self.batch,
            options=BuildOptions(
                optimization_level=self.optimization_level,
                targets=self.targets,
                hardware_compatibility=self.hardware_compatibility,
                tf32=self.tf32,
            ),
            cache=None if self.no_cache else EngineCache(told=print_warning),
            log=_print_log if self.verbose else None,
        )


def _print_log(line: str) -> None:
    stderr.print(f"TensorRT {line}", style="dim", markup=False, soft_wrap=True)
