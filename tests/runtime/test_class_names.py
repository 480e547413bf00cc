"""--classes FILE: names and order of the network's outputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sad_deploy.data import find_data
from sad_runtime.class_names import names_in_metadata, read_class_names
from sad_runtime.errors import UserError


@pytest.mark.parametrize(
    "text",
    [
        "zero\none\n two \n\n",
        "\ufeffzero\r\none\r\ntwo\r\n",
        json.dumps(["zero", "one", "two"]),
        json.dumps({"one": 1, "zero": 0, "two": 2}),
        json.dumps({"2": "two", "0": "zero", "1": "one"}),
    ],
    ids=["lines", "windows", "list", "class_to_idx", "id2label"],
)
def test_every_form_gives_the_same_names(tmp_path, text):
    (tmp_path / "classes").write_text(text, newline="")
    assert read_class_names(tmp_path / "classes") == ("zero", "one", "two")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\na\n", "names a more than once"),
        ("a\n", "names 1 classes"),
        ("", "names 0 classes"),
        ("[1, 2]", "holds neither"),
        ('{"a": 0, "b": 2}', "holds neither"),
        ('{"a": 0, "b": 0}', "holds neither"),
        ("[", "not readable as JSON"),
    ],
)
def test_what_is_no_list_of_names_is_refused(tmp_path, text, message):
    (tmp_path / "classes").write_text(text)
    with pytest.raises(UserError, match=message):
        read_class_names(tmp_path / "classes")


@pytest.mark.parametrize("name", ["absent", ".", "binary"])
def test_what_cannot_be_read_is_one_line(tmp_path, name):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_class_names(tmp_path / name)


def folders(root, *names, empty=()):
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True)
        if name not in empty:
            Image.fromarray(np.full((4, 4, 3), k, np.uint8)).save(root / name / "0.png")
    return str(root)


def test_labels_follow_the_order_given_and_a_class_may_have_no_folder(tmp_path):
    data = find_data(folders(tmp_path, "one", "three", "zero"), classes=("zero", "one", "two", "three"))
    assert data.classes == ("zero", "one", "two", "three")
    assert dict(zip((Path(name).parent.name for name in data.items), data.labels, strict=True)) == {
        "one": 1,
        "three": 3,
        "zero": 0,
    }


def test_an_empty_class_folder_is_fine_if_its_class_is_named(tmp_path):
    root = folders(tmp_path, "a", "b", "c", empty=["b"])
    with pytest.raises(UserError, match="hold no images: b"):
        find_data(root)
    assert find_data(root, classes=("c", "b", "a")).labels.tolist() == [2, 0]


def test_a_folder_that_is_not_named_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"1 of 2 class folders .* are not in --classes: cat"):
        find_data(folders(tmp_path, "cat", "dog"), classes=("Cat", "dog"))


def test_data_with_an_order_of_its_own_takes_no_other():
    with pytest.raises(UserError, match="--classes is for images whose classes have no order"):
        find_data("digits", classes=("a", "b"))


@pytest.mark.parametrize(
    "metadata",
    [
        {"names": "{0: 'zero', 1: 'one', 2: 'two'}"},
        {"names": "['zero', 'one', 'two']"},
        {"classes": json.dumps(["zero", "one", "two"])},
        {"id2label": json.dumps({"1": "one", "0": "zero", "2": "two"})},
        {"labels": "zero, one, two"},
        {"class_names": "zero\none\ntwo\n"},
        {"names": "__import__('os')", "labels": "zero,one,two"},
    ],
)
def test_names_that_an_exporter_wrote_into_a_graph(metadata):
    assert names_in_metadata(metadata, 3) == ("zero", "one", "two")


@pytest.mark.parametrize(
    "text", ["", "a,b", "a,b,a", "(" * 5000, "{0: 'a', 1: 'b', 3: 'c'}", "3", "{" * 99999]
)
def test_metadata_that_names_other_things_is_left(text):
    assert names_in_metadata({"names": text, "stride": "32"}, 3) is None
