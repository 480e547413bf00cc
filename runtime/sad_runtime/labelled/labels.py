"""What images show: the class of each by a list of ``path,label`` lines, or by the folder it lies in."""

from __future__ import annotations

import csv
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import UserError, reason_of
from ..sources import absolute

FOLDERS = "folders"
"""In place of a list's file: the names of folders are the labels."""

_PATH = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
_LABEL = ("label", "labels", "class", "class_name", "cls", "target", "category")
"""What a list's first line may call its columns; the first that is there counts."""


@dataclasses.dataclass(frozen=True)
class Labels:
    """Gives images their labels, by the names that :mod:`sad_runtime.sources` gives them.

    Attributes:
        name: What gives them: a file, or ``folders``.
        classes: K names, in the order of the logits.
        base: Folder that holds all images: the first folder below it that is named like a class decides, else
            the nearest above.
        listed: Label by absolute path, for a list.
    """

    name: str
    classes: tuple[str, ...]
    base: Path
    listed: Mapping[str, int] | None = None
    _index: Mapping[str, int] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", _numbers(self.classes))

    @classmethod
    def read(cls, given: str, classes: Sequence[str], base: Path) -> Labels:
        """Labels as ``--labels`` names them.

        Args:
            given: ``folders``, or the file of a list. Its paths are relative to its own folder; a label is a
                class's name or its number. A first line ``path,label`` may be there.
            classes: K names, in the order of the logits.
            base: Folder that holds all images.

        Raises:
            UserError: The list cannot be read, is empty, has a label that is no class, or two for an image.
        """
        if given == FOLDERS:
            return cls(given, tuple(classes), base)
        paths = listed(Path(given), classes)
        return cls(given, tuple(classes), base, {str(absolute(path)): label for path, label in paths})

    def of(self, name: str) -> int | None:
        """The label of an image; None if nothing says it."""
        path = absolute(name)
        if self.listed is not None:
            return self.listed.get(str(path))
        folders, base = path.parts[:-1], self.base.parts
        inside = folders[: len(base)] == base
        below = folders[len(base) :] if inside else ()
        above = reversed(base if inside else folders)
        return next((self._index[each] for each in (*below, *above) if each in self._index), None)

    def why_missing(self) -> tuple[str, str]:
        """Why an image has none, and what to do."""
        example = f"classes are {self.classes[0]!r}, {self.classes[-1]!r} …"
        if self.listed is not None:
            return f"{self.name} does not list them", "its paths are relative to the list's own folder"
        return (
            "no folder they are in is named like a class",
            f"{example}; --labels FILE lists them, and --classes FILE names the classes of a bare graph",
        )


def listed(path: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """A list of ``path,label`` lines; relative paths begin at the list's folder.

    Raises:
        UserError: It cannot be read, is empty, has a label that is no class, or two for an image.
    """
    index = _numbers(classes)
    found: dict[Path, int] = {}
    for number, (name, text) in enumerate(read_list(path), start=1):
        label = None if text is None else _label(text, index)
        if label is None:
            given = "none" if text is None else repr(text)
            raise UserError(
                f"image {number} of {path} has label {given}, which is none of the {len(classes)} classes",
                hint=f"a class's name, for example {classes[0]!r}, or its number",
            )
        image = path.parent / name
        if found.setdefault(image, label) != label:
            both = f"{classes[found[image]]} and {classes[label]}"
            raise UserError(f"{path} has two labels for {name}: {both}")
    return list(found.items())


def read_list(path: Path) -> Iterator[tuple[str, str | None]]:
    """Lines of a path and a label, separated by commas, or by tabs in a ``.tsv`` or where no comma is.

    The first line may name the columns, ``path`` and ``label`` for example, which may then be any two.

    Returns:
        Path and label as they are written, stripped; None where there is no label. Line by line.

    Raises:
        UserError: It cannot be read, or has no line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            tabs = path.suffix.lower() == ".tsv" or ("\t" in first and "," not in first)
            rows: Iterator[list[str]] = (
                row for row in csv.reader(file, delimiter="\t" if tabs else ",") if row
            )
            head = next(rows, None)
            columns = None if head is None else _columns(head)
            if head is not None and columns is None:
                columns = (0, 1)
                rows = itertools.chain((head,), rows)
            empty = True
            for row in rows:
                empty = False
                image, label = columns or (0, 1)
                text = row[label].strip() if len(row) > label else ""
                yield (row[image].strip() if len(row) > image else ""), text or None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"the list {path} cannot be read: {reason}") from None
    if empty:
        raise UserError(f"the list {path} names no image", hint="lines of path,label")


def _columns(row: Sequence[str]) -> tuple[int, int] | None:
    """Which columns hold path and label, if this first line names them."""
    cells = [cell.strip().lower() for cell in row]
    image = next((i for i, cell in enumerate(cells) if cell in _PATH), None)
    label = next((i for i, cell in enumerate(cells) if cell in _LABEL), None)
    if image is None or (label is None and len(cells) > 1):
        return None
    return image, len(cells) if label is None else label


def _numbers(classes: Sequence[str]) -> dict[str, int]:
    """Number by name; of a name that several classes have, the first."""
    return {name: i for i, name in reversed([*enumerate(classes)])}


def _label(text: str, index: Mapping[str, int]) -> int | None:
    """The class of this name, else of this number."""
    if text in index:
        return index[text]
    return int(text) if text.isdecimal() and int(text) < len(index) else None
