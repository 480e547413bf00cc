"""SOURCE arguments → image files, in an order that does not depend on the file system.

Folders are searched recursively by file name ending; a file named by itself, or matched by a pattern as the
shell would match it, is taken whatever its ending.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import UserError
from .images import EXTENSIONS


@dataclasses.dataclass(frozen=True)
class Images:
    """The image files of some sources.

    Attributes:
        paths: As the user would write them: each begins with the SOURCE it came from. In the order of the
            sources, sorted within each, every file once.
        base: Deepest folder (absolute) that holds all sources; relative to it every path is unique.
    """

    paths: tuple[Path, ...]
    base: Path


def find_images(
    sources: Sequence[str | os.PathLike[str]], *, exclude: Iterable[str | os.PathLike[str]] = ()
) -> Images:
    """Find the images of some sources.

    Hidden files and folders inside a folder are left out. Links to folders are followed, each folder is
    read once. The same path given twice is taken once.

    Args:
        sources: Folders, files and patterns (``*``, ``?``, ``[…]``, ``**``).
        exclude: Files and folders not to read, for example where results are written.

    Returns:
        At least one path.

    Raises:
        UserError: Some sources hold no image; all of them are named.
    """
    excluded = {os.path.realpath(path) for path in exclude}
    found: dict[Path, Path] = {}
    folders: list[Path] = []
    problems = []
    for source in [os.fspath(source) for source in sources]:
        matches = _matches(source)
        try:
            inside = [path for match in matches for path in _images_at(match, excluded)]
        except OSError as error:
            problems.append(f"{error.filename} ({error.strerror})")
            continue
        if not inside:
            reason = "no image in it" if matches else "no such file or folder"
            if any(os.path.realpath(match) in excluded for match in matches):
                reason = "results are written there"
            problems.append(f"{source} ({reason})")
        folders += [match if match.is_dir() else match.parent for match in map(absolute, matches)]
        for path in inside:
            found.setdefault(absolute(path), path)
    if problems:
        endings = " ".join(sorted(EXTENSIONS))
        raise UserError(
            f"nothing to read from {', '.join(problems)}",
            hint=f"inside folders, images are found by their endings: {endings}",
        )
    return Images(tuple(found.values()), Path(os.path.commonpath(folders)))


def absolute(path: str | os.PathLike[str]) -> Path:
    """The path from the root, without ``.`` and ``..``; links are not followed, so that names stay apart."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() follows links


def _images_at(path: Path, excluded: set[str]) -> list[Path]:
    if path.is_dir():
        return _walk(path, excluded)
    return [] if os.path.realpath(path) in excluded else [path]


def _matches(source: str) -> list[Path]:
    """The path itself if there is one, whatever characters it has; else what a shell would make of it."""
    if os.path.lexists(source):
        return [Path(source)]
    return sorted(map(Path, glob.glob(source, recursive=True)))  # noqa: PTH207 - Path.glob rewrites what the user typed


def _walk(root: Path, excluded: set[str]) -> list[Path]:
    """Image files below a folder, sorted. Real folders come before linked ones, so that links add no second
    name for what is there anyway, and a loop ends.
    """
    found: list[Path] = []
    linked: list[Path] = []
    visited: set[str] = set()
    excluded_names = {Path(path).name for path in excluded}
    pending = [root]
    while pending or linked:
        if not pending:
            linked.sort()
            pending.append(linked.pop(0))
        folder = pending.pop()
        real = os.path.realpath(folder)
        if real in visited or real in excluded:
            continue
        visited.add(real)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = folder / entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif entry.is_dir():
                    linked.append(path)
                elif path.suffix.lower() in EXTENSIONS and (
                    entry.name not in excluded_names or os.path.realpath(path) not in excluded
                ):
                    found.append(path)
    return sorted(found)
