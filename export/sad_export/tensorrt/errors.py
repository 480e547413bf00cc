"""What can be wrong with an engine's build."""

from __future__ import annotations

from sad_runtime.errors import UserError


class EngineError(UserError):
    """An engine cannot be built as asked; no file was written."""


class UnbuildableError(EngineError):
    """TensorRT refused the graph, or found no kernel for a part of it.

    Args:
        message: With TensorRT's reason.
        hint: What to do about it.
        operator: That of the node it failed at; None if TensorRT named none.
    """

    def __init__(self, message: str, *, hint: str | None = None, operator: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.operator = operator
