"""Optional dependencies: one way to ask for one, one line when it is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from types import ModuleType

from .errors import MissingExtraError


def require(module: str, *, extra: str, need: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: Name to import, for example ``"onnx_ir"``.
        extra: The extra of ``sad-deploy`` that installs it.
        need: What needs it, the subject of the error's sentence, for example ``"sad-deploy export"``.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: It is not installed. An import that fails for another reason is a bug or a
            broken installation and keeps its own exception.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise MissingExtraError(module, extra=extra, need=need)
    return importlib.import_module(module)


def installed_version(*distributions: str) -> str:
    """Version of the first of these packages that is installed, without importing it; else ``unknown``."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
