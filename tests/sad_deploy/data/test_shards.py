"""WebDataset: members of an archive that share a key."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from sad_deploy.data import WithValidation, find_data, find_labelled
from sad_runtime.errors import UserError

from .conftest import KINDS, encoded, everything, labels_by_level


def tar(path: str | Path, members: list[tuple[str, bytes]], mode: str = "w") -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def samples(numbers: range, *, ending: str = "cls") -> list[tuple[str, bytes]]:
    label = {"cls": lambda i: str(i % 3), "json": lambda i: json.dumps({"label": i % 3, "width": 4})}[ending]
    return [
        each
        for i in numbers
        for each in ((f"{i:03}.png", encoded(i)), (f"{i:03}.{ending}", label(i).encode()))
    ]


def thirds(numbers: range) -> dict[int, int]:
    return {i: i % 3 for i in numbers}


@pytest.mark.parametrize("ending", ["cls", "json"])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_image_has_the_label_that_shares_its_key(here: Path, ending: str, mode: str) -> None:
    source = find_data(tar("a.tar", samples(range(30), ending=ending), mode))
    assert labels_by_level(everything(source)) == thirds(range(30))
    assert source.classes == ("0", "1", "2")


def test_the_members_of_an_image_may_lie_apart_and_in_any_order(here: Path) -> None:
    members = samples(range(30))
    tar("a.tar", members[::2] + members[1::2])
    tar("b.tar", members[::-1])
    for name in ("a.tar", "b.tar"):
        assert labels_by_level(everything(find_data(name))) == thirds(range(30))


def test_a_zip_is_read_as_a_tar_is(here: Path) -> None:
    with zipfile.ZipFile("a.zip", "w") as archive:
        for name, data in samples(range(30)):
            archive.writestr(f"inside/{name}", data)
    assert labels_by_level(everything(find_data("a.zip"))) == thirds(range(30))


@pytest.mark.parametrize(
    "name", ["shards", "shards/s-{000..002}.tar", "shards/s-*.tar", "shards/s-00{0,1,2}.tar"]
)
def test_shards_are_a_folder_or_a_pattern(here: Path, name: str) -> None:
    for k in range(3):
        tar(f"shards/s-00{k}.tar", samples(range(10 * k, 10 * k + 10)))
    assert labels_by_level(everything(find_data(name))) == thirds(range(30))


def test_a_missing_shard_is_named(here: Path) -> None:
    tar("s-0.tar", samples(range(10)))
    with pytest.raises(UserError, match=r"2 of 3 files of s-\{0\.\.2\}\.tar are missing: s-1\.tar, s-2\.tar"):
        find_data("s-{0..2}.tar")


def test_shards_named_like_parts_are_parts(here: Path) -> None:
    tar("d/x-train-0.tar", samples(range(20)))
    tar("d/x-train-1.tar", samples(range(20, 40)))
    tar("d/x-val-0.tar", samples(range(40, 50)))
    source = find_data("d")
    assert isinstance(source, WithValidation)
    data = everything(source)
    assert sorted(data.calibration.images[:, 0, 0, 0].tolist()) == list(range(40))
    assert sorted(data.held_out.images[:, 0, 0, 0].tolist()) == list(range(40, 50))
    assert source.left_out[0] == "d (train) calibrates, d (validation) chooses eta and measures accuracy"
    assert find_labelled("d", KINDS).part == "validation"


def test_images_without_any_label_have_none_and_folders_inside_are_classes(here: Path) -> None:
    tar("flat.tar", [(f"{i}.png", encoded(i)) for i in range(20)])
    assert find_data("flat.tar").classes is None
    tar("photos.tar", [(f"photos/{KINDS[i % 3]}/{i}.png", encoded(i)) for i in range(30)])
    source = find_data("photos.tar")
    assert source.classes == KINDS
    assert labels_by_level(everything(source)) == thirds(range(30))


def test_an_image_without_a_label_among_others_is_left_out_and_said(here: Path) -> None:
    members = [each for each in samples(range(30)) if each[0] not in ("004.cls", "009.cls")]
    source = find_data(tar("a.tar", members))
    assert labels_by_level(everything(source)) == {i: i % 3 for i in range(30) if i not in (4, 9)}
    assert "2 images of a.tar have no label; left out" in source.left_out


def test_broken_images_are_named_and_skipped_or_fatal(here: Path) -> None:
    members = [(name, b"junk" if name == "007.png" else data) for name, data in samples(range(30))]
    data = everything(find_data(tar("a.tar", members)))
    assert len(data.skipped) == 1 and data.skipped[0].startswith("a.tar/007.png: not an image")
    assert labels_by_level(data) == {i: i % 3 for i in range(30) if i != 7}
    with pytest.raises(
        UserError, match=r"1 image of a.tar cannot be used: a.tar/007.png: not an image"
    ) as error:
        everything(find_data("a.tar", strict=True))
    assert "--strict" in str(error.value.hint)


def test_what_a_cut_off_shard_holds_is_read_and_the_rest_said(here: Path) -> None:
    whole = Path(tar("a.tar", samples(range(30)))).read_bytes()
    Path("a.tar").write_bytes(whole[: len(whole) // 2 + 100])
    tar("b.tar", samples(range(30, 60)))
    data = everything(find_data("{a,b}.tar"))
    found = labels_by_level(data)
    assert found == {i: i % 3 for i in found} and set(range(30, 60)) <= set(found) and 10 < len(found) < 50
    assert any(line.startswith("a.tar: the archive ends early, after ") for line in data.skipped)
    with pytest.raises(UserError, match=r"a\.tar: the archive ends early"):
        everything(find_data("{a,b}.tar", strict=True))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"-3", r"1 of 31 labels of a.tar are out of range: -3"),
        (b"7000000000", r"1 of 31 labels of a.tar are out of range: 7000000000"),
    ],
)
def test_a_label_that_is_no_class_is_one_line(here: Path, label: bytes, message: str) -> None:
    tar("a.tar", [*samples(range(30)), ("x.png", encoded(0)), ("x.cls", label)])
    with pytest.raises(UserError, match=message):
        find_data("a.tar")


def test_numbers_are_the_networks_classes_of_which_there_may_be_more(here: Path) -> None:
    tar("a.tar", samples(range(30)))
    source = find_data("a.tar", classes=("x", "y", "z", "unseen"))
    assert source.classes == ("x", "y", "z", "unseen")
    assert labels_by_level(everything(source)) == thirds(range(30))
    with pytest.raises(
        UserError, match=r"10 of 30 labels of a.tar are out of range: 2; --classes has 2 classes"
    ):
        find_data("a.tar", classes=("x", "y"))


def test_names_in_cls_files_are_the_classes(here: Path) -> None:
    members = [
        (name, KINDS[int(data)].encode() + b"\n" if name.endswith("cls") else data)
        for name, data in samples(range(30))
    ]
    source = find_data(tar("a.tar", members))
    assert source.classes == KINDS
    assert labels_by_level(everything(source)) == thirds(range(30))
    found = find_labelled("a.tar", KINDS[::-1])
    assert found.classes == KINDS[::-1] and found.labels[:3].tolist() == [2, 1, 0]


def test_parts_inside_an_archive_are_not_taken_for_classes(here: Path) -> None:
    tar(
        "a.tar",
        [
            (f"d/{part}/{kind}/{i}.png", encoded(i))
            for part in ("train", "val")
            for kind in KINDS
            for i in (1, 2)
        ],
    )
    with pytest.raises(UserError, match=r"a\.tar holds parts of a data set: train, val"):
        find_data("a.tar")


@pytest.mark.parametrize(
    "name", ["x" * 5000, "s-{0..999999999}.tar", "{0..9}" * 12 + ".tar", "nothing-*.tar", "a\0b"]
)
def test_a_name_of_nothing_is_one_line(here: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"there is no data folder or file|names more than 100,000 files"):
        find_data(name)
