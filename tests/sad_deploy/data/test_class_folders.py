from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sad_deploy.data import WithValidation, find_data
from sad_deploy.data.parts import part_of
from sad_runtime.errors import UserError
from sad_runtime.manifest import Color, Preprocessing
from sad_runtime.sources import open_sources


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(root: Path | str) -> dict[str, str]:
    """Class by image, relative to the folder."""
    source = find_data(str(root))
    assert source.classes is not None
    classes = [source.classes[label] for label in source.labels]
    paths = [os.path.relpath(name, root) for name in source.items]
    assert len(set(map(os.path.realpath, source.items))) == len(paths)
    return dict(zip(paths, classes, strict=True))


def test_images_below_a_class_folder_are_of_its_class(tmp_path):
    make(tmp_path, "cat/1.jpg", "cat/s/2.PNG", "cat/s/t/3.gif", "dog/u/4.webp", "dog/dog/5.jpg")
    assert found(tmp_path) == {
        "cat/1.jpg": "cat",
        "cat/s/2.PNG": "cat",
        "cat/s/t/3.gif": "cat",
        "dog/dog/5.jpg": "dog",
        "dog/u/4.webp": "dog",
    }
    assert find_data(str(tmp_path)).left_out == ()


def test_calibrate_finds_in_a_class_folder_what_infer_finds_in_it(tmp_path):
    make(tmp_path, "a/.hidden/1.jpg", "a/.2.jpg", "a/b/3.jpg", "a/b/c/4.TIF", "a/b/c/5.txt", "a/6.jpg/7.bmp")
    make(tmp_path, "elsewhere/8.jpg", ".h/9.jpg", "data/b/10.jpg")
    (tmp_path / "a" / "10.jpg").symlink_to("b/3.jpg")
    (tmp_path / "a" / "link").symlink_to("../elsewhere")
    (tmp_path / "a" / "loop").symlink_to("b")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    (tmp_path / "data" / "a").symlink_to("../a")
    with open_sources([str(tmp_path / "data" / "a")]) as sources:
        expected = [item.name for item in sources]
    assert len(expected) == 6
    found = find_data(str(tmp_path / "data")).items
    assert sorted(name for name in found if "/data/a/" in name) == sorted(expected)


def test_the_images_themselves_are_read_with_their_labels(tmp_path):
    for k, name in enumerate(("a/x/y", "b")):
        (tmp_path / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (8, 8), (k, i, 0)).save(tmp_path / name / f"{i}.png")
    source = find_data(str(tmp_path))
    preprocessing = Preprocessing(color=Color.RGB, resize=8, crop=(8, 8))
    data = source.load(preprocessing, calibration=99, held_out=99, seed=0)
    assert data.skipped == ()
    for part, n in ((data.calibration, 16), (data.held_out, 4)):
        assert len(part) == n
        assert np.array_equal(part.images[:, 0, 0, 0], part.labels)


def test_loops_of_links_end_and_every_image_has_the_class_it_lies_in(tmp_path):
    make(tmp_path / "data", "a/1.jpg", "a/s/2.jpg", "b/3.jpg", "b/s/4.jpg", "beside.jpg")
    expected = found(tmp_path / "data")
    assert len(expected) == 4
    for link, target in {
        "a/itself": ".",
        "a/s/up": "..",
        "a/top": "../..",
        "a/other": "../b",
        "a/0-inside-another": "../b/s",
        "b/s/back": "../../a/s",
        "b/dangling": "nowhere",
        "b/endless": "endless",
    }.items():
        (tmp_path / "data" / link).symlink_to(target)
    assert found(tmp_path / "data") == expected


def test_a_class_folder_may_be_a_link_also_into_another(tmp_path):
    make(tmp_path / "far", "1.jpg", "s/2.jpg")
    make(tmp_path / "data", "b/3.jpg", "b/s/4.jpg")
    (tmp_path / "data" / "a").symlink_to(tmp_path / "far")
    (tmp_path / "data" / "c").symlink_to("b/s")
    assert found(tmp_path / "data") == {"a/1.jpg": "a", "a/s/2.jpg": "a", "b/3.jpg": "b", "c/4.jpg": "c"}


def test_one_folder_as_two_classes_is_refused(tmp_path):
    make(tmp_path, "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "kitten").symlink_to("cat")
    with pytest.raises(UserError, match=r"cat and kitten in .* are the same folder"):
        find_data(str(tmp_path))


def test_a_link_back_is_no_class(tmp_path):
    make(tmp_path / "data", "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "data" / "all").symlink_to(".")
    (tmp_path / "data" / "parent").symlink_to("..")
    assert set(found(tmp_path / "data").values()) == {"cat", "dog"}
    notes = find_data(str(tmp_path / "data")).left_out
    assert [Path(note.split()[0]).name for note in notes] == ["all", "parent"]
    assert all("leads back to" in note for note in notes)


@pytest.mark.parametrize(
    "names",
    [
        ["train"],
        ["train", "val"],
        ["Test", "Train", "VALID"],
        ["dev", "eval", "training"],
        ["test_images", "train-images"],
        ["testing", "train2017", "val2017"],
        ["held-out", "TrainVal"],
        ["labels", "test", "train"],
        ["validation", "test_set"],
    ],
)
def test_parts_are_found_by_themselves_and_said(tmp_path, names):
    make(tmp_path, *(f"{name}/{kind}/1.jpg" for name in names for kind in ("cat", "dog")))
    data = find_data(str(tmp_path))
    best = next((name for name in names if name.lower().startswith("train")), names[0])
    assert data.name == str(tmp_path / best) and data.classes == ("cat", "dog")
    assert str(tmp_path / best) in data.left_out[0]
    assert isinstance(data, WithValidation) == (len(set(map(part_of, names)) - {None}) > 1)


def test_the_validation_part_chooses_eta_or_else_the_test_part_or_what_is_named(tmp_path):
    make(
        tmp_path, *(f"{part}/{kind}/1.jpg" for part in ("train", "valid", "test") for kind in ("cat", "dog"))
    )
    data = find_data(str(tmp_path))
    assert isinstance(data, WithValidation) and data.validation.name == str(tmp_path / "valid")
    assert data.left_out == (
        f"{tmp_path}/train calibrates, {tmp_path}/valid chooses eta and measures accuracy",
    )
    named = find_data(str(tmp_path), val_data=str(tmp_path / "test"))
    assert isinstance(named, WithValidation) and named.validation.name == str(tmp_path / "test")
    shutil.rmtree(tmp_path / "valid")
    data = find_data(str(tmp_path))
    assert isinstance(data, WithValidation) and data.validation.name == str(tmp_path / "test")


def test_a_class_that_a_part_lacks_is_named(tmp_path):
    make(tmp_path, "train/ant/1.jpg", "train/bee/1.jpg", "train/cow/1.jpg", "val/ant/1.jpg", "val/cow/1.jpg")
    note = f"{tmp_path}/val has no image of 1 of 3 classes: bee"
    assert note in find_data(str(tmp_path)).left_out
    make(tmp_path, "val/bee/1.jpg", "val/dog/1.jpg")
    with pytest.raises(UserError, match=r"1 of 4 class folders in .*/val are not in .*/train: dog"):
        find_data(str(tmp_path))


def test_two_folders_for_one_part_are_not_guessed_between(tmp_path):
    make(
        tmp_path, *(f"{part}/{kind}/1.jpg" for part in ("train_a", "train2017", "train2018") for kind in "xy")
    )
    shutil.rmtree(tmp_path / "train_a")
    with pytest.raises(UserError, match=r"holds train2017 and train2018, both for train"):
        find_data(str(tmp_path))


def test_a_part_without_labels_chooses_nothing_for_one_with(tmp_path):
    make(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "test/3.jpg")
    data = find_data(str(tmp_path))
    assert data.name == str(tmp_path / "train") and not isinstance(data, WithValidation)


def test_one_class_alone_is_refused(tmp_path):
    make(tmp_path, "cat/1.jpg", "cat/2.jpg")
    with pytest.raises(UserError, match=r"images of one class only: cat"):
        find_data(str(tmp_path))


@pytest.mark.parametrize(
    "names",
    [
        ["train/1.jpg", "test/2.jpg", "train/more/3.jpg"],  # images of their own
        ["bus/x/1.jpg", "plane/x/2.jpg", "train/x/3.jpg"],  # one among others
        ["freight train/x/1.jpg", "latest/x/2.jpg"],
        ["session1/x/1.jpg", "session2/x/2.jpg"],
    ],
)
def test_folders_that_may_be_classes_are_classes(tmp_path, names):
    make(tmp_path, *names)
    assert found(tmp_path) == {name: name.partition("/")[0] for name in sorted(names)}


def test_what_is_left_out_is_counted_and_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(Path("photos"), "cat/1.jpg", "cat/s/2.CR2", "cat/3.cr2", "dog/4.jpg", "dog/5.zip", "README")
    make(Path("photos"), ".hidden.cr2", ".hidden/6.cr2", "cat/.DS_Store", "cat/s/.git/7.cr2")
    expected = "4 files in photos/ left out for not having an image's extension: 2 .cr2, 1 .zip, "
    assert find_data("photos").left_out == (f"{expected}1 without extension",)
    make(Path("photos"), "8.jpg")
    source = find_data("photos/")
    assert source.left_out[0] == "1 image beside the class folders in photos/ was left out"
    assert source.left_out[1].startswith(expected)
    assert len(source.items) == 2
    make(Path("photos"), "9.JPG", "10.png")
    assert find_data("photos").left_out[0] == "3 images beside the class folders in photos/ were left out"


def test_what_is_left_out_of_a_flat_folder_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "1.jpg", "2.cr2", ".3.cr2")
    source = find_data(".")
    assert source.classes is None
    assert [Path(name).name for name in source.items] == ["1.jpg"]
    assert source.left_out == ("1 file in ./ left out for not having an image's extension: 1 .cr2",)


@pytest.mark.parametrize("names", [["1.cr2", "2.cr2"], ["cat/1.cr2", "cat/s/2.cr2", "dog/3.jpg"]])
def test_where_images_are_missing_the_error_says_what_there_is(tmp_path, names):
    make(tmp_path, *names)
    with pytest.raises(UserError, match=r"holds? no images") as error:
        find_data(str(tmp_path))
    assert "left out for not having an image's extension: 2 .cr2" in str(error.value.hint)


def test_a_folder_that_cannot_be_read_is_said(tmp_path):
    """Deeper than any path: what even root cannot read."""
    make(tmp_path, "a/1.jpg", "b/2.jpg")
    part = "d" * 250
    outer = os.open(tmp_path / "a", os.O_RDONLY)
    for _ in range(20):
        os.mkdir(part, dir_fd=outer)
        inner = os.open(part, os.O_RDONLY, dir_fd=outer)
        os.close(outer)
        outer = inner
    os.close(outer)
    source = find_data(str(tmp_path))
    assert len(source.items) == 2
    assert len(source.left_out) == 1
    assert "cannot be read: File name too long" in source.left_out[0]


def test_of_the_digits_nothing_is_left_out():
    assert find_data("digits").left_out == ()
