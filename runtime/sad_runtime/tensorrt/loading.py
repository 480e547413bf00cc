"""Import the package of a flavor, and capture its log."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..errors import BackendError
from ..extras import require
from .flavors import Flavor


def load_tensorrt(flavor: Flavor, *, need: str) -> ModuleType:
    """Import the module of a flavor.

    Args:
        flavor: Which TensorRT.
        need: What needs it, the subject of the error's sentence.

    Raises:
        MissingExtraError: The package is not installed.
        BackendError: The package is there, but its libraries are not.
    """
    try:
        return require(flavor.module, extra=flavor.value, need=need)
    except (ImportError, OSError) as error:
        raise BackendError(
            f"{flavor.module} is installed, but its libraries do not load: {' '.join(str(error).split())}",
            hint=f'pip install --force-reinstall "sad-deploy[{flavor}]"',
        ) from error


def error_log(tensorrt: Any, *, echo: Callable[[str], None] | None = None) -> Any:
    """A logger that keeps TensorRT's errors, which explain a ``None``, instead of printing them.

    Args:
        tensorrt: The module.
        echo: Called with every message but the verbose ones, as they come.
    """

    class Log(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if echo is not None and severity != tensorrt.ILogger.Severity.VERBOSE:
                echo(f"{severity.name.lower().replace('_', ' ')}: {message}")
            if severity in (tensorrt.ILogger.Severity.ERROR, tensorrt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

        def reason(self) -> str:
            text = self.errors[0] if self.errors else "it gave no reason"
            return text if len(text) <= 300 else text[:297] + "..."

    return Log()
