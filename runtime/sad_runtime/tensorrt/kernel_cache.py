"""The kernels that TensorRT for RTX compiles on first use, kept in a file so that the next start is fast.

``NAME.cache`` lies beside ``NAME.plan``, in a bundle too: no manifest lists it, a bundle is whole without it.
TensorRT itself refuses one of another version, GPU or driver. It is a convenience: whatever is wrong with it,
kernels are compiled again.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import written_whole


def cache_path(plan: Path) -> Path:
    """Where the kernels of an engine are kept."""
    return plan.with_suffix(".cache")


def is_cache(name: str, plans: set[str]) -> bool:
    """Whether a file's name is that of a cache, finished or not, of one of these engines.

    Args:
        name: Path with ``/``.
        plans: Likewise.
    """
    folder, slash, file = name.rpartition("/")
    engine, found, rest = file.removeprefix(".").rpartition(".cache")
    return bool(found) and (not rest or file.startswith(".")) and f"{folder}{slash}{engine}.plan" in plans


class KernelCache:
    """The kernels of an engine; filled from the file if there is one that fits.

    Args:
        cache: TensorRT's, empty. A CUDA context must be current, for it compares the GPU with the file's.
        path: The file.
    """

    def __init__(self, cache: Any, path: Path) -> None:
        self._cache = cache
        self._path = path
        self._kept = b""
        try:
            content = path.read_bytes()
        except OSError:
            return
        if content and cache.deserialize(content):
            self._kept = content

    def save(self) -> None:
        """Write what is new, whole or not at all; not where the folder cannot be written to."""
        found = self._cache.serialize()
        content = b"" if found is None else bytes(found)
        if content in (b"", self._kept):
            return
        with contextlib.suppress(UserError):
            with written_whole(self._path) as draft:
                draft.write_bytes(content)
            self._kept = content
