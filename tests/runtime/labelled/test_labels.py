from __future__ import annotations

from pathlib import Path

import pytest

from sad_runtime.errors import UserError
from sad_runtime.labelled import FOLDERS, Labels

CLASSES = ("cat", "dog", "2")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("photos/dog/1.png", 1),
        ("photos/dog/cat/1.png", 1),
        ("photos/day 1/cat/1.png", 0),
        ("val.zip/val/dog/1.png", 1),
        ("photos/1.png", None),
        ("photos/cat.png", None),
        ("elsewhere/dog/cat/1.png", 0),
    ],
)
def test_the_first_folder_below_the_source_that_is_a_class(
    name: str, label: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = tmp_path if name.startswith("val.zip") else tmp_path / "photos"
    assert Labels.read(FOLDERS, CLASSES, base).of(name) == label


def test_a_source_inside_a_class_folder_is_of_that_class(tmp_path: Path) -> None:
    base = tmp_path / "dog" / "cat"
    assert Labels.read(FOLDERS, CLASSES, base).of(str(base / "deep" / "1.png")) == 0


def test_a_list_is_relative_to_its_own_folder_and_names_or_numbers(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("path,label\na.png,dog\nsub/b.png,0\nc.zip/d.png,2\n\n/abs/e.png,1\n", encoding="utf-8")
    labels = Labels.read(str(path), CLASSES, Path("/nowhere"))
    found = [labels.of(str(tmp_path / name)) for name in ("a.png", "sub/b.png", "c.zip/d.png", "other.png")]
    assert found == [1, 0, 2, None], "a name goes before a number: the class 2 is the third"
    assert labels.of("/abs/e.png") == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no image"),
        ("path,label\n", "names no image"),
        ("a.png\n", "image 1 of .* has label none, which is none of the 3 classes"),
        ("a.png,0\nb.png,fish\n", "image 2 of .* has label 'fish'"),
        ("a.png,3\n", "has label '3'"),
        ("a.png,0\na.png,1\n", "has two labels for a.png: cat and dog"),
        (b"\xff\xfea", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(text: str | bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=reason):
        Labels.read(str(path), CLASSES, tmp_path)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        Labels.read(str(tmp_path / "no.csv"), CLASSES, tmp_path)
