"""The parts of a data set by what folders and files are called: ``train``, ``Val2017``, ``test-00000``.

The training part calibrates; η is chosen on images that the network was not trained on, and attacked are, if
there are some, images that chose nothing.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import TypeVar

T = TypeVar("T")

_SPLIT = re.compile(
    r"(train(ing)?|trn|val(id(ation)?)?|test(ing)?|tst|dev(elopment)?|eval(uation)?|holdout|heldout)+"
    r"((sub)?set|data|images?|imgs?|split|part)*"
)


class Part(enum.StrEnum):
    """What a part of a data set is for."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


CALIBRATION = (Part.TRAIN, Part.VALIDATION, Part.TEST)
VALIDATION = (Part.VALIDATION, Part.TEST)
EVALUATION = (Part.TEST, Part.VALIDATION, Part.TRAIN)
"""Which part is taken for what, in order of preference."""


def part_of(name: str) -> Part | None:
    """The part that a folder's name means: ``train``, ``Val2017``, ``test_images``; None if it means none."""
    letters = re.sub(r"[\W\d_]+", "", name.lower())
    if _SPLIT.fullmatch(letters) is None:
        return None
    if letters.startswith(("train", "trn")):
        return Part.TRAIN
    return Part.VALIDATION if letters.startswith(("val", "dev")) else Part.TEST


def part_of_file(path: PurePath, root: PurePath) -> Part | None:
    """The part that a file's name means by one of its words, or else the folder that it lies in."""
    words = re.split(r"[\W\d_]+", path.name.partition(".")[0].lower())
    found = (part_of(word) for word in words if word)
    folders = (part_of(folder) for folder in reversed(path.relative_to(root).parts[:-1]))
    return next((part for part in (*found, *folders) if part is not None), None)


def by_part(paths: Iterable[Path], root: Path) -> dict[Part | None, list[Path]]:
    """Files by the part that they are of, each part sorted."""
    parts: dict[Part | None, list[Path]] = {}
    for path in sorted(paths):
        parts.setdefault(part_of_file(path, root), []).append(path)
    return parts


def first_of(parts: Mapping[Part | None, T], preferred: Iterable[Part]) -> T | None:
    """What is there of the first part that is there."""
    return next((parts[part] for part in preferred if part in parts), None)
