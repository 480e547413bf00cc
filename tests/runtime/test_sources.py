from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from sad_runtime.errors import UserError
from sad_runtime.sources import find_images


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Created in a random order, which must not show."""
    names = [
        "b.png",
        "a.JPG",
        "c.txt",
        "sub/z.tiff",
        "sub/deep/y.WebP",
        "sub/a.gif",
        ".hidden/x.png",
        "._a.jpg",
    ]
    random.shuffle(names)
    for name in names:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "images"


def names(*sources: str | Path, exclude: tuple[str | Path, ...] = ()) -> list[str]:
    return [os.fspath(path) for path in find_images(sources, exclude=exclude).paths]


def test_folder_is_read_recursively_and_sorted(folder: Path) -> None:
    assert names("images") == [
        "images/a.JPG",
        "images/b.png",
        "images/sub/a.gif",
        "images/sub/deep/y.WebP",
        "images/sub/z.tiff",
    ]


def test_file_given_by_name_is_taken_whatever_its_ending(folder: Path) -> None:
    assert names("images/c.txt", "images/._a.jpg") == ["images/c.txt", "images/._a.jpg"]


def test_pattern_means_what_the_shell_makes_of_it(folder: Path) -> None:
    assert names("images/[ac].*") == ["images/a.JPG", "images/c.txt"]
    assert names("images/**/*.gif") == ["images/sub/a.gif"]
    assert names("images/su?") == names("images/sub")


def test_existing_name_with_pattern_characters_is_a_name(folder: Path) -> None:
    (folder / "a[1].png").touch()
    (folder / "a1.png").touch()
    assert names("images/a[1].png") == ["images/a[1].png"]


def test_path_given_twice_is_taken_once_where_it_came_first(folder: Path) -> None:
    assert names("images/b.png", "./images", folder / "b.png", "images/../images/a.JPG")[:2] == [
        "images/b.png",
        "images/a.JPG",
    ]
    assert len(names("images/b.png", "./images", folder)) == 5


def test_linked_loop_ends_and_adds_nothing(folder: Path) -> None:
    before = names("images")
    (folder / "a_loop").symlink_to(folder)
    (folder / "sub" / "up").symlink_to("..")
    (folder / "alias").symlink_to(folder / "sub")
    assert names("images") == before


def test_linked_folder_is_followed(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.png").touch()
    (folder / "link").symlink_to(elsewhere)
    assert "images/link/far.png" in names("images")


def test_many_folders_linked_to_each_other_are_each_read_once(tmp_path: Path) -> None:
    folders = [tmp_path / f"f{i:02}" for i in range(12)]
    for one in folders:
        one.mkdir()
        (one / "x.png").touch()
    for one in folders:
        for other in folders:
            (one / f"to_{other.name}").symlink_to(other)
    assert names(tmp_path) == [f"{one}/x.png" for one in folders]


def test_results_inside_the_input_are_not_read(folder: Path) -> None:
    (folder / "overlays").mkdir()
    (folder / "overlays" / "b.png.png").touch()
    (folder / "out.png").touch()
    (folder / "sub" / "out.png").touch()
    found = names("images", exclude=("images/overlays", folder / "out.png"))
    assert "images/sub/out.png" in found
    assert len(found) == 6


def test_sources_without_an_image_are_all_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        find_images(["images", "empty", "absent", "*.nothing"])
    message = caught.value.message
    assert "empty (no image in it)" in message
    assert "absent (no such file or folder)" in message
    assert "*.nothing (no such file or folder)" in message
    assert "images " not in message


def test_base_is_the_deepest_folder_of_all_sources(folder: Path, tmp_path: Path) -> None:
    assert find_images(["images"]).base == folder
    assert find_images(["images/sub/deep"]).base == folder / "sub" / "deep"
    assert find_images(["images/b.png"]).base == folder
    assert find_images(["images/sub/deep", "images/b.png"]).base == folder
    assert find_images(["images/sub/a.gif", "images/sub/deep"]).base == folder / "sub"


def test_name_that_is_not_utf8_is_found(folder: Path) -> None:
    (folder / os.fsdecode(b"\xff.png")).touch()
    assert any(os.fsencode(path).endswith(b"\xff.png") for path in find_images([folder]).paths)
