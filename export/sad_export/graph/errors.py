"""What is wrong with a graph."""

from __future__ import annotations

from sad_runtime.errors import UserError


class GraphError(UserError):
    """A graph that is not a classifier we can differentiate; nothing was written."""
