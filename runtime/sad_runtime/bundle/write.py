"""Writing a bundle: whole or not at all.

A bundle is written to a hidden folder beside its destination, hashed, flushed to the disk and swapped in by
rename. Whatever goes wrong before the swap removes the hidden folder and leaves the old bundle as it was; a
crash within the swap is undone by the next ``Bundle.open``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import BundleError, UserError
from ..files import flush
from ..manifest import MANIFEST_NAME, SCHEMA_VERSION, Manifest, unsafe_name
from ..tensorrt.kernel_cache import is_cache
from ..version import __version__
from .read import Bundle, folder_lock, previous_path, recover_previous, sha256

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EIO, errno.ENOTEMPTY}
_FULL_BELOW_BYTES = 1 << 16
# What file managers leave in any folder; no reason to refuse to replace it.
_INCIDENTAL_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}


class Draft:
    """A bundle being written. Files are written under :meth:`path`; ``manifest`` must be set before the end.

    Attributes:
        root: The hidden folder it grows in.
        manifest: What it will say; ``files``, ``created_by`` and ``schema`` are filled at the end.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest: Manifest | None = None

    def path(self, name: str) -> Path:
        """Where to write the file ``name``; its folder is made. A file kept under that name is dropped.

        Raises:
            BundleError: The name would leave the bundle.
        """
        if reason := unsafe_name(name):
            raise BundleError(f"file name {name!r} {reason}")
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # A kept file is a hard link: writing into it would change the old bundle.
        path.unlink(missing_ok=True)
        return path

    def has(self, name: str, digest: str) -> bool:
        """Whether a file was written already and has this SHA-256."""
        path = self.root / name
        return path.is_file() and sha256(path) == digest

    def keep(self, bundle: Bundle, *names: str) -> None:
        """Take files over from an existing bundle, verified; a hard link where possible, else a copy.

        Raises:
            BundleError: A file is not listed there or was changed.
        """
        for name in names:
            source, target = bundle.file(name), self.path(name)
            # The contents, not a symbolic link inside the old bundle, which would die with it.
            source = Path(os.path.realpath(source))
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)


def check_destination(path: str | os.PathLike[str]) -> None:
    """Refuse a destination that :func:`write_bundle` would refuse, before any work is done.

    Raises:
        BundleError: It is a file, the current folder, or a folder that is neither empty nor a bundle; a
            bundle in which other files lie; or its folder cannot be written to.
    """
    destination = _resolved(path)
    recover_previous(destination)
    if Path.cwd().is_relative_to(destination):
        raise BundleError(
            f"{path} is the current folder or holds it", hint="name a folder of its own with --out"
        )
    if destination.is_dir():
        _check_replaceable(destination, Path(path))
    elif destination.exists():
        raise BundleError(f"{path} is a file; a bundle is a folder", hint="choose another --out")
    parent = next(folder for folder in destination.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise BundleError(f"cannot write a bundle to {path}: {parent} is not a writable folder")


@contextlib.contextmanager
def write_bundle(destination: str | os.PathLike[str]) -> Iterator[Draft]:
    """Write a bundle: the body fills the :class:`Draft`, a clean end swaps it in.

    Args:
        destination: The bundle's folder: absent, empty or a bundle, which is then replaced.

    Yields:
        The draft to fill.

    Raises:
        BundleError: See :func:`check_destination`; or the manifest names a file that was not written.
        UserError: The disk is full or the folder cannot be written. Nothing was changed.
    """
    check_destination(destination)
    root = _resolved(destination)
    temporary: Path | None = None
    try:
        with contextlib.ExitStack() as stack:
            root.parent.mkdir(parents=True, exist_ok=True)
            with folder_lock(root.parent):
                _remove_leftovers(root)
                temporary = root.parent / f"{_temporary_prefix(root)}{secrets.token_hex(4)}"
                temporary.mkdir()
                # A mark, for as long as this process lives, that the folder is no leftover.
                stack.enter_context(folder_lock(temporary))
            draft = Draft(temporary)
            yield draft
            _finish(draft)
            _swap(temporary, root)
    except Exception as error:
        if reason := _disk_problem(error, temporary or root.parent):
            raise UserError(
                f"{reason} while writing {destination}; nothing was changed",
                hint="make room, or name another place with --out",
            ) from error
        raise
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _finish(draft: Draft) -> None:
    """Hash and flush every file, then write the manifest."""
    if draft.manifest is None:
        raise RuntimeError("write_bundle: the draft has no manifest")
    files = {
        path.relative_to(draft.root).as_posix(): sha256(path)
        for path in sorted(draft.root.rglob("*"))
        if path.is_file() and path != draft.root / MANIFEST_NAME
    }
    unwritten = sorted(dataclasses.replace(draft.manifest, files={}).file_names() - set(files))
    if unwritten:
        raise BundleError(f"the manifest names files that were not written: {', '.join(unwritten)}")
    manifest = dataclasses.replace(
        draft.manifest, files=files, created_by=f"sad-deploy {__version__}", schema=SCHEMA_VERSION
    )
    (draft.root / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8", newline="\n")
    for path in [*draft.root.rglob("*"), draft.root]:
        flush(path)


def _swap(temporary: Path, root: Path) -> None:
    """Two renames, under the lock: the old bundle aside, the new one in. If one fails, the old is back."""
    previous = previous_path(root)
    with folder_lock(root.parent):
        if root.exists():
            _check_replaceable(root, root)  # again: the body may have taken hours
            shutil.rmtree(previous, ignore_errors=True)
        try:
            if root.exists():
                root.rename(previous)
            temporary.rename(root)
        except BaseException:
            if not root.exists() and previous.exists():
                previous.rename(root)
            raise
        flush(root.parent)
        # Under its own name an old bundle would be taken for one to recover; write_bundle removes this one.
        if previous.exists():
            previous.rename(temporary)


def _check_replaceable(root: Path, shown: Path) -> None:
    entries = {entry.name for entry in root.iterdir()} - _INCIDENTAL_FILES
    if not entries:
        return
    listed = _listed_files(root)
    if listed is None:
        raise BundleError(
            f"{shown} is neither empty nor a bundle; it is not replaced",
            hint="choose another --out, or remove it",
        )
    present = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }
    foreign = sorted(
        name
        for name in present - listed - {MANIFEST_NAME}
        if Path(name).name not in _INCIDENTAL_FILES and not is_cache(name, listed)
    )
    if foreign:
        raise BundleError(
            f"{shown} also holds files that are not the bundle's and would be lost: {', '.join(foreign[:5])}"
            + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""),
            hint="move them away, or choose another --out",
        )


def _listed_files(root: Path) -> set[str] | None:
    """Names listed by the bundle at ``root``, of whatever schema; ``None`` if it is none of ours."""
    # Not Manifest.from_json: an older, newer or damaged bundle may be replaced, another program's
    # manifest.json may not.
    try:
        manifest = json.loads((root / MANIFEST_NAME).read_bytes())
        ours = isinstance(manifest["schema"], int) and str(manifest["created_by"]).startswith("sad-deploy")
        return set(map(str, manifest["files"])) if ours else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _disk_problem(error: Exception, folder: Path) -> str | None:
    """What an exception of the body says about the disk, or ``None`` if it is about something else."""
    if isinstance(error, UserError):
        return None
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"no room on the disk ({error.strerror})"
    # Writers with their own exceptions (torch, safetensors) hide the errno; the disk does not.
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < _FULL_BELOW_BYTES:
            return "no room on the disk"
    if (
        isinstance(error, OSError)
        and error.errno in _UNWRITABLE
        and str(error.filename).startswith(str(folder.parent))
    ):
        return f"{error.filename} cannot be written ({error.strerror})"
    return None


def _remove_leftovers(root: Path) -> None:
    """Remove hidden folders of writers that died; those of live writers hold a lock."""
    leftovers = [path for path in root.parent.iterdir() if path.name.startswith(_temporary_prefix(root))]
    for leftover in leftovers:
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(descriptor)


def _temporary_prefix(root: Path) -> str:
    return f".{root.name}.writing-"


def _resolved(path: str | os.PathLike[str]) -> Path:
    # The target of a symbolic link, so that the link survives the swap.
    return Path(os.path.realpath(path))
