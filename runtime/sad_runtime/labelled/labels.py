"""What images show: the class of each by a list of ``path,label`` lines, or by the folder it lies in."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UserError, reason_of
from ..sources import absolute

FOLDERS = "folders"
"""In place of a list's file: the names of folders are the labels."""

_HEAD = ["path", "label"]


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
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"the list {path} cannot be read: {reason}") from None
    if rows and [cell.strip().lower() for cell in rows[0][:2]] == _HEAD:
        rows = rows[1:]
    if not rows:
        raise UserError(f"the list {path} names no image", hint="lines of path,label")
    index = _numbers(classes)
    found: dict[Path, int] = {}
    for number, row in enumerate(rows, start=1):
        label = _label(row[1].strip(), index) if len(row) > 1 else None
        if label is None:
            given = repr(row[1]) if len(row) > 1 else "none"
            raise UserError(
                f"image {number} of {path} has label {given}, which is none of the {len(classes)} classes",
                hint=f"a class's name, for example {classes[0]!r}, or its number",
            )
        image = path.parent / row[0]
        if found.setdefault(image, label) != label:
            both = f"{classes[found[image]]} and {classes[label]}"
            raise UserError(f"{path} has two labels for {row[0]}: {both}")
    return list(found.items())


def _numbers(classes: Sequence[str]) -> dict[str, int]:
    """Number by name; of a name that several classes have, the first."""
    return {name: i for i, name in reversed([*enumerate(classes)])}


def _label(text: str, index: Mapping[str, int]) -> int | None:
    """The class of this name, else of this number."""
    if text in index:
        return index[text]
    return int(text) if text.isdecimal() and int(text) < len(index) else None
