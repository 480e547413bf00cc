"""Lists of path and label."""

from __future__ import annotations

from pathlib import Path

import pytest

from sad_deploy.data import find_data, find_labelled
from sad_runtime.errors import UserError

from .conftest import KINDS, encoded, everything, labels_by_level


@pytest.fixture(autouse=True)
def images(here: Path) -> None:
    (here / "sub" / "p").mkdir(parents=True)
    for i in range(30):
        (here / "sub" / "p" / f"{i:02}.png").write_bytes(encoded(i))


def lines(separator: str = ",", label: tuple[str, ...] = KINDS) -> list[str]:
    return [f"p/{i:02}.png{separator}{label[i % 3]}" for i in range(30)]


def write(name: str, rows: list[str]) -> str:
    Path(name).write_text("\n".join(rows) + "\n")
    return name


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("sub/l.csv", lines()),
        ("sub/l.csv", ["path,label", *lines()]),
        ("sub/l.csv", ["\ufefflabel,filename", *(",".join(reversed(line.split(","))) for line in lines())]),
        (
            "sub/l.csv",
            ["id,image,split,class", *(f"{k},{line.replace(',', ',x,')}" for k, line in enumerate(lines()))],
        ),
        ("sub/l.tsv", lines("\t")),
        ("sub/l.csv", ["path\tlabel", *lines("\t")]),
    ],
)
def test_paths_are_relative_to_the_list_and_a_first_line_may_name_the_columns(
    name: str, rows: list[str]
) -> None:
    source = find_data(write(name, rows))
    assert source.classes == KINDS
    assert labels_by_level(everything(source)) == {i: i % 3 for i in range(30)}


def test_numbers_are_classes_counted_from_zero() -> None:
    source = find_data(write("sub/l.csv", lines(label=("0", "1", "2"))))
    assert source.classes == ("0", "1", "2")
    assert find_labelled("sub/l.csv", KINDS).labels[:4].tolist() == [0, 1, 2, 0]
    with pytest.raises(UserError, match=r"10 of 30 labels of sub/l.csv are out of range: 2"):
        find_labelled("sub/l.csv", ("x", "y"))


def test_paths_alone_are_images_without_labels() -> None:
    source = find_data(write("sub/l.csv", [line.partition(",")[0] for line in lines()]))
    assert source.classes is None and set(labels_by_level(everything(source))) == set(range(30))
    with pytest.raises(UserError, match="has no labels"):
        find_labelled("sub/l.csv", KINDS)


def test_absent_and_broken_images_are_named_and_skipped() -> None:
    Path("sub/p/03.png").write_bytes(b"")
    data = everything(find_data(write("sub/l.csv", [*lines(), "p/absent.png,ant"])))
    assert sorted(data.skipped) == ["sub/p/03.png: the file is empty", "sub/p/absent.png: no such file"]
    assert len(labels_by_level(data)) == 29


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "names no image"),
        (["path,label"], "names no image"),
        (["p/00.png,ant", "p/01.png,bee", "p/00.png,bee"], r"two labels for p/00\.png: ant and bee"),
        (["p/00.png,ant", "p/01.png,ant"], "images of one class only: ant"),
    ],
)
def test_a_list_that_cannot_be_used_is_one_line(rows: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_data(write("sub/l.csv", rows))


def test_a_list_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match=r"the list absent\.csv cannot be read"):
        find_data("absent.csv")
