"""A folder of engines that were built before, by the hash of everything that they were built from.

Two builds of one graph differ in bytes, so an engine is found by its ingredients: graph, TensorRT, options,
profile, target. An entry is ``KEY.plan`` and its sidecar; the plan is hashed on its way out, and a damaged
entry is built again. The least recently used go when the folder grows beyond its limit.

An engine is a program: what lies here is trusted as one, so the folder has to be its user's alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sad_runtime.bundle.read import sha256
from sad_runtime.errors import BundleError, UserError
from sad_runtime.files import cache_folder, written_whole
from sad_runtime.tensorrt import EngineInfo, read_sidecar

LIMIT_BYTES = 2 << 30
_LEFT_BEHIND_SECONDS = 3600


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/sad-deploy/engines``, by default ``~/.cache/sad-deploy/engines``."""
    return cache_folder() / "engines"


def cache_key(ingredients: Mapping[str, Any]) -> str:
    """Hexadecimal SHA-256 of everything that decides what an engine is, as JSON values."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


class EngineCache:
    """Engines by key. Nothing here raises: without a cache an engine is built.

    Args:
        folder: Where; made when the first engine is kept.
        limit_bytes: Size of all plans beyond which the least recently used go; the last one always stays.
        on_message: Called with one line when the cache cannot be used or written.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        limit_bytes: int = LIMIT_BYTES,
        on_message: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.folder = folder or default_folder()
        self._limit_bytes = limit_bytes
        self._on_message = on_message

    def take(self, key: str, plan: Path) -> EngineInfo | None:
        """Copy the engine of a key to ``plan``; None, and nothing written, if there is no sound one."""
        entry = self.folder / f"{key}.plan"
        if not entry.exists() or not self._is_private():
            return None
        with contextlib.suppress(BundleError, OSError):
            info = read_sidecar(entry.with_suffix(".json"))
            if sha256(entry) == info.engine_sha256:
                with written_whole(plan) as draft:
                    shutil.copyfile(entry, draft)
                with contextlib.suppress(OSError):
                    os.utime(entry)
                return dataclasses.replace(info, from_cache=True)
        self._on_message(f"the engine kept in {entry} is damaged, and built again")
        return None

    def put(self, key: str, plan: Path, info: EngineInfo) -> None:
        """Keep an engine; it appears whole or not at all."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._is_private():
                return
            self._write(f"{key}.plan", lambda path: shutil.copyfile(plan, path))
            self._write(f"{key}.json", lambda path: path.write_text(info.as_json(), encoding="utf-8"))
            self._remove_oldest()
        except (OSError, UserError) as error:
            self._on_message(f"the engine is not kept in {self.folder}: {error}")

    def read_timing(self, name: str) -> bytes:
        """The measured kernels kept under a name; empty if there are none."""
        with contextlib.suppress(OSError):
            if self._is_private():
                return (self.folder / f"{name}.timing").read_bytes()
        return b""

    def write_timing(self, name: str, timing: bytes) -> None:
        """Keep measured kernels for the next build."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._is_private():
                self._write(f"{name}.timing", lambda path: path.write_bytes(timing))
        except (OSError, UserError) as error:
            self._on_message(f"the measured kernels are not kept in {self.folder}: {error}")

    def _is_private(self) -> bool:
        """Whether nobody else can put a program here."""
        if not hasattr(os, "geteuid"):
            return True
        try:
            status = self.folder.stat()
        except OSError:
            return False
        if status.st_uid == os.geteuid() and not status.st_mode & 0o022:
            return True
        self._on_message(f"the engine cache {self.folder} is not used: others can write to it (chmod 700 it)")
        return False

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        with written_whole(self.folder / name) as draft:
            write(draft)

    def _remove_oldest(self) -> None:
        for draft in self.folder.glob(".*"):  # of a process that was killed
            if draft.stat().st_mtime < time.time() - _LEFT_BEHIND_SECONDS:
                draft.unlink(missing_ok=True)
        entries = [(plan, plan.stat()) for plan in self.folder.glob("*.plan")]
        room = self._limit_bytes
        for i, (plan, status) in enumerate(sorted(entries, key=lambda each: -each[1].st_mtime_ns)):
            room -= status.st_size
            if room < 0 and i > 0:
                plan.unlink(missing_ok=True)
                plan.with_suffix(".json").unlink(missing_ok=True)
