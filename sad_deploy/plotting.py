"""Files of plots, drawn by matplotlib where it is installed (extra ``benchmark``)."""

from __future__ import annotations

import io
from pathlib import Path
from types import ModuleType
from typing import Any

from sad_runtime.errors import UserError
from sad_runtime.extras import require

FORMATS = ("png", "svg", "pdf")
"""By the file's ending."""

_DOTS_PER_INCH = 100


def check_plot(path: Path) -> None:
    """Find out whether a plot can be drawn.

    Raises:
        UserError: The file's ending is none of :data:`FORMATS`.
        MissingExtraError: matplotlib is not installed.
    """
    if _format(path) not in FORMATS:
        raise UserError(
            f"no plot can be written to {path}: its ending must be one of "
            f"{', '.join('.' + ending for ending in FORMATS)}"
        )
    _matplotlib()


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches, of 100 pixels each, whose parts make room for each other.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return _matplotlib().Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, layout="constrained")


def drawn(figure: Any, path: Path) -> bytes:
    """What the file of a figure holds, in the format of the file's ending."""
    file = io.BytesIO()
    figure.savefig(file, format=_format(path))
    return file.getvalue()


def _format(path: Path) -> str:
    return path.suffix.removeprefix(".").lower()


def _matplotlib() -> ModuleType:
    for module in ("matplotlib", "matplotlib.figure"):  # the first is the one to name
        imported = require(module, extra="benchmark", need="a plot")
    return imported
