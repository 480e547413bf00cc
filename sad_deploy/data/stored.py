"""What a name of ``--data`` is: a folder, a list, archives, tables, somebody's code; and its parts."""

from __future__ import annotations

import dataclasses
import enum
import glob
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sad_runtime.errors import UserError, reason_of
from sad_runtime.sources import has_image_ending
from sad_runtime.sources.archives import is_archive_name

from . import lists, loaders
from .parts import Part, by_part, part_of

_TABLES = (".parquet", ".arrow")
_FEW = 8
"""Folders in which files of tables are looked for; where there are more, they are classes."""
_PEEKED = 64
_DEPTH = 3
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_MOST_FILES = 100_000


class Kind(enum.Enum):
    """How images are stored."""

    FOLDER = enum.auto()
    NAMED = enum.auto()
    LIST = enum.auto()
    SHARDS = enum.auto()
    TABLES = enum.auto()
    LOADER = enum.auto()


@dataclasses.dataclass(frozen=True)
class Stored:
    """Images that lie somewhere, not yet listed.

    Attributes:
        kind: How.
        name: For sentences.
        paths: Where; of a named source the arguments, of a loader nothing.
        part: Which part of the data set it is; None where it has no parts.
    """

    kind: Kind
    name: str
    paths: tuple[str, ...] = ()
    part: Part | None = None


Parts = Mapping[Part | None, Stored]


def find_stored(name: str) -> Parts:
    """What lies under a name, by the parts of the data set; without any, one under None.

    Args:
        name: A folder, a file, a pattern, ``@LIST``, or ``module:factory``.

    Raises:
        UserError: There is nothing.
    """
    path = Path(name).expanduser()
    if _exists(str(path)) and path.is_dir():
        return _of_folder(name, path)
    if loaders.is_loader(name):
        return {None: Stored(Kind.LOADER, name)}
    if path.suffix.lower() in lists.ENDINGS:
        return {None: Stored(Kind.LIST, name, (str(path),))}
    files = [str(path)] if _exists(str(path)) else _expanded(str(path))
    if not files:
        if name.startswith("@"):
            return {None: Stored(Kind.NAMED, name, (name,))}
        raise UserError(
            f"there is no data folder or file {path}",
            hint="--data takes a folder, an archive, a table, a list FILE.csv, a pattern, module:factory, "
            "digits, cifar10:PATH or cifar100:PATH",
        )
    endings = {Path(file).suffix.lower() for file in files}
    if endings <= set(_TABLES):
        return {None: Stored(Kind.TABLES, name, tuple(files))}
    if all(map(is_archive_name, files)):
        return {None: Stored(Kind.SHARDS, name, tuple(files))}
    if _exists(str(path)) and not has_image_ending(path.name):
        raise UserError(
            f"{path} is no data folder, archive, table or list",
            hint="read are .zip, .tar, .parquet, .arrow, .csv and .tsv, by their endings",
        )
    return {None: Stored(Kind.NAMED, name, tuple(files))}


def _exists(name: str) -> bool:
    return os.path.exists(name)  # noqa: PTH110 - Path's raises where a name is too long for any file


def _of_folder(name: str, path: Path) -> Parts:
    try:
        folders, holds_images = _top(path)
    except OSError as error:
        raise UserError(f"the data folder {path} cannot be read: {reason_of(error)}") from None
    saved = _saved(name, path)
    if saved is not None:
        return saved
    near = [*_near(path, folders)]
    tables = [file for file in near if file.suffix.lower() in _TABLES]
    archives = [file for file in near if is_archive_name(file.name)]
    # Results and backups lie beside photographs, and a picture beside a published table.
    for kind, files in ((Kind.TABLES, tables), (Kind.SHARDS, archives)):
        if files and (not holds_images or any(map(_SHARD.search, (file.stem for file in files)))):
            return _files(kind, name, path, files)
    splits = {folder: part for folder in folders if (part := part_of(folder.name)) is not None}
    nested = {folder: part for folder, part in splits.items() if _is_nested(folder)}
    if not nested or 2 * len(splits) <= len(folders):
        return {None: Stored(Kind.FOLDER, name, (str(path),))}
    parts: dict[Part | None, Stored] = {}
    for folder, part in sorted(nested.items()):
        if part in parts:
            raise UserError(
                f"{path} holds {Path(parts[part].paths[0]).name} and {folder.name}, both for {part}",
                hint=f"name one of them: --data {folder}",
            )
        parts[part] = Stored(Kind.FOLDER, os.path.join(name, folder.name), (str(folder),), part)  # noqa: PTH118
    return parts


def _top(path: Path) -> tuple[list[Path], bool]:
    """The folders in a folder, and whether images lie in it or at the beginning of one that is no part."""
    with os.scandir(path) as scanned:
        entries = sorted((entry for entry in scanned if not entry.name.startswith(".")), key=lambda e: e.name)
    folders = [Path(entry.path) for entry in entries if entry.is_dir()]
    images = any(has_image_ending(entry.name) for entry in entries if not entry.is_dir())
    return folders, images or any(_begins_with_image(folder) for folder in folders[:_FEW])


def _begins_with_image(folder: Path, depth: int = _DEPTH) -> bool:
    try:
        with os.scandir(folder) as scanned:
            entries = [*itertools.islice(scanned, _PEEKED)]
    except OSError:
        return False
    if any(has_image_ending(entry.name) for entry in entries):
        return True
    below = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)][:_FEW]
    return depth > 1 and any(_begins_with_image(each, depth - 1) for each in below)


def _is_nested(folder: Path) -> bool:
    """Whether it holds folders and no image itself."""
    try:
        with os.scandir(folder) as scanned:
            entries = [entry for entry in scanned if not entry.name.startswith(".")]
    except OSError:
        return False
    return any(entry.is_dir() for entry in entries) and not any(
        has_image_ending(entry.name) for entry in entries if not entry.is_dir()
    )


def _near(path: Path, folders: Sequence[Path]) -> Iterator[Path]:
    """Files in a folder, and in the folders of it and of these, if there are few."""
    yield from (file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    if len(folders) > _FEW:
        return
    for folder in folders:
        below = [each for each in folder.iterdir() if each.is_dir()] if os.access(folder, os.R_OK) else []
        for each in [folder, *(below if len(below) <= _FEW else ())]:
            if os.access(each, os.R_OK):
                yield from (file for file in each.iterdir() if file.is_file())


def _files(kind: Kind, name: str, root: Path, files: Sequence[Path]) -> Parts:
    """Files of tables or shards by part; of a data set in several configurations one has to be named."""
    if kind is Kind.TABLES:
        homes = {_home(file, root) for file in files}
        if len(homes) > 1:
            names = ", ".join(sorted(map(str, homes)))
            raise UserError(f"{name} holds several data sets: {names}", hint="name one of these folders")
    parts = by_part(files, root)
    return {
        part: Stored(kind, name if part is None else f"{name} ({part})", tuple(map(str, found)), part)
        for part, found in parts.items()
        if part is not None or len(parts) == 1
    }


def _home(file: Path, root: Path) -> Path:
    """The folder of a file, but for those that are named like a part."""
    folders = file.relative_to(root).parts[:-1]
    return Path(*(folder for folder in folders if part_of(folder) is None))


def _saved(name: str, path: Path) -> Parts | None:
    """A folder of Hugging Face's ``save_to_disk``: one part, or a folder for each."""
    if (path / "dataset_dict.json").is_file():
        splits = [each for each in sorted(path.iterdir()) if (each / "state.json").is_file()]
        parts: dict[Part | None, Stored] = {}
        for split in splits:
            part = part_of(split.name)
            if part is not None or len(splits) == 1:
                files = _arrow_files(split)
                parts.setdefault(part, Stored(Kind.TABLES, f"{name} ({split.name})", files, part))
        if parts:
            return parts
        raise UserError(
            f"the parts of {name} are none of train, validation and test: "
            f"{', '.join(split.name for split in splits) or 'there is none'}",
            hint="name the folder of one of them",
        )
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return {None: Stored(Kind.TABLES, name, _arrow_files(path))}
    return None


def _arrow_files(path: Path) -> tuple[str, ...]:
    try:
        files = [each["filename"] for each in json.loads((path / "state.json").read_text())["_data_files"]]
        if files:
            return tuple(str(path / Path(file).name) for file in files)
    except (OSError, ValueError, KeyError, TypeError):
        files = []
    raise UserError(f"{path / 'state.json'} names no files that can be read", hint="save the data set anew")


def _expanded(pattern: str) -> list[str]:
    """The files of a pattern with ``{000..012}``, ``{a,b}``, ``*``, ``?`` and ``[…]``, each once.

    Raises:
        UserError: Of those that braces name, some are missing.
    """
    found: dict[str, None] = {}
    missing = []
    for number, each in enumerate(_braces(pattern)):
        if number == _MOST_FILES:
            raise UserError(f"{pattern} names more than {_MOST_FILES:,} files")
        if glob.has_magic(each):
            found |= dict.fromkeys(sorted(glob.glob(each, recursive=True)))  # noqa: PTH207 - as it is written
        elif _exists(each):
            found[each] = None
        else:
            missing.append(each)
    if missing and found:
        raise UserError(
            f"{len(missing)} of {len(missing) + len(found)} files of {pattern} are missing: "
            f"{', '.join(missing[:_FEW])}"
        )
    return [*found]


def _braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{(?:(\d{1,9})\.\.(\d{1,9})|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        yield pattern
        return
    first, last, words = match.groups()
    if words is not None:
        inside: Iterator[str] = iter(words.split(","))
    else:
        inside = (f"{i:0{len(first)}}" for i in range(int(first), int(last) + 1))
    for each in inside:
        yield from _braces(pattern[: match.start()] + each + pattern[match.end() :])
