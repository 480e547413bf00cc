"""Which engine an export is to build: everything but the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from sad_runtime.tensorrt import EngineInfo, Flavor, load_tensorrt

from .build import NEED, build_engine, check_batch
from .cache import EngineCache
from .flavors import choose_flavor
from .options import BuildOptions, check_options


@dataclasses.dataclass(frozen=True)
class EngineRequest:
    """Which engine to build.

    Attributes:
        flavor: ``rtx``, ``tensorrt`` or ``auto``.
        batch: Smallest, best and largest batch of the profile.
        options: How.
        cache: Where an engine may be taken from and is kept; None for neither.
        log: Called with every line that TensorRT has to say; None keeps it quiet.
    """

    flavor: str = "auto"
    batch: tuple[int, int, int] = (1, 8, 64)
    options: BuildOptions = dataclasses.field(default_factory=BuildOptions)
    cache: EngineCache | None = None
    log: Callable[[str], None] | None = None

    def check(self) -> Flavor:
        """The flavor that will build it; what can be refused before there is a graph is refused.

        Raises:
            UserError: No such TensorRT here, or it cannot build what is asked for.
        """
        check_batch(self.batch)
        flavor = choose_flavor(self.flavor)
        check_options(self.options, flavor, load_tensorrt(flavor, need=NEED))
        return flavor

    def build(self, graph: Path, plan: Path) -> EngineInfo:
        """Build it; see :func:`build_engine`."""
        return build_engine(
            graph,
            plan,
            flavor=self.flavor,
            batch=self.batch,
            options=self.options,
            cache=self.cache,
            log=self.log,
        )
