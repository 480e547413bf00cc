"""Parquet and Arrow files of images, as Hugging Face and others write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sad_deploy.data import WithValidation, find_data, find_labelled
from sad_runtime.errors import UserError

from .conftest import KINDS, encoded, everything, labels_by_level

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

NAMES = ["cow", "ant", "bee"]
THIRDS = {i: i % 3 for i in range(30)}


def table(numbers: range = range(30), *, names: list[str] | None = NAMES, **columns: Any) -> Any:
    """As Hugging Face writes it: structs, and the classes' names in the schema's metadata."""
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    columns = {
        "image": [{"bytes": encoded(i), "path": f"{i:03}.png"} for i in numbers],
        "label": [i % 3 for i in numbers],
    } | columns
    found = pyarrow.table({key: value for key, value in columns.items() if value is not None})
    said = json.dumps({"info": {"features": {key: features[key] for key in features if key in columns}}})
    return found.replace_schema_metadata({"huggingface": said} if names else None)


def write(path: str, content: Any, **options: Any) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(content, path, **options)
    return path


def save(folder: str, content: Any, *, batch: int = 7) -> str:
    """As ``Dataset.save_to_disk``: a stream of batches beside what it consists of."""
    Path(folder).mkdir(parents=True)
    file = "data-00000-of-00001.arrow"
    with pyarrow.ipc.new_stream(f"{folder}/{file}", content.schema) as stream:
        stream.write_table(content, max_chunksize=batch)
    Path(folder, "state.json").write_text(json.dumps({"_data_files": [{"filename": file}]}))
    Path(folder, "dataset_info.json").write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def in_folder(here: Path) -> None:
    pass


def test_the_classes_are_in_the_order_that_the_file_says() -> None:
    source = find_data(write("a.parquet", table()))
    assert source.classes == tuple(NAMES)
    assert labels_by_level(everything(source)) == THIRDS
    assert source.left_out == ("a.parquet: images of column image, labels of column label",)
    assert find_labelled("a.parquet", sorted(NAMES)).labels[:3].tolist() == [2, 0, 1]


@pytest.mark.parametrize("rows", [1, 4, 1000])
def test_groups_of_rows_of_any_size_give_the_same(rows: int) -> None:
    source = find_data(write("a.parquet", table(), row_group_size=rows))
    assert labels_by_level(everything(source)) == THIRDS
    some = labels_by_level(everything(source, calibration=5, held_out=2))
    assert len(some) == 7 and some.items() <= THIRDS.items()


@pytest.mark.parametrize(
    "columns",
    [
        {"image": None, "bytes": [encoded(i) for i in range(30)]},
        {"image": None, "img": [encoded(i) for i in range(30)], "key": [b"k"] * 30},
        {"label": None, "fine_label": [i % 3 for i in range(30)], "coarse_label": [0] * 30},
        {"label": pyarrow.array([str(i % 3) for i in range(30)]).dictionary_encode()},
        {"label": pyarrow.array([float(i % 3) for i in range(30)])},
    ],
)
def test_columns_of_other_names_and_kinds_are_found(columns: dict[str, Any]) -> None:
    source = find_data(write("a.parquet", table(names=None, **columns)))
    assert source.classes == ("0", "1", "2")
    assert labels_by_level(everything(source)) == THIRDS


def test_labels_may_be_names() -> None:
    source = find_data(write("a.parquet", table(names=None, label=[KINDS[i % 3] for i in range(30)])))
    assert source.classes == KINDS and labels_by_level(everything(source)) == THIRDS


@pytest.mark.parametrize("label", [None, [-1] * 30, [None] * 30])
def test_a_table_without_labels_is_images_without_labels(label: list[Any] | None) -> None:
    content = table(label=None if label is None else pyarrow.array(label, pyarrow.int64()))
    source = find_data(write("a.parquet", content))
    assert source.classes is None and set(labels_by_level(everything(source))) == set(range(30))


def test_a_published_data_set_is_read_in_its_parts() -> None:
    write("birds/data/train-00000-of-00002.parquet", table(range(20)))
    write("birds/data/train-00001-of-00002.parquet", table(range(20, 30)))
    write("birds/data/validation-00000-of-00001.parquet", table(range(30, 36)))
    write("birds/data/test-00000-of-00001.parquet", table(range(36, 48)))
    Path("birds/README.md").write_text("---\n---\n")
    Path("birds/banner.png").write_bytes(encoded(0))
    source = find_data("birds")
    assert isinstance(source, WithValidation) and source.name == "birds (train)"
    data = everything(source)
    assert sorted(data.calibration.images[:, 0, 0, 0].tolist()) == list(range(30))
    assert sorted(data.held_out.images[:, 0, 0, 0].tolist()) == list(range(30, 36))
    tested = find_labelled("birds", NAMES)
    assert (tested.part, len(tested.labels)) == ("test", 12)


def test_results_beside_photographs_are_no_data_set() -> None:
    write("photos/predictions.parquet", pyarrow.table({"path": ["a"]}))
    for i in range(6):
        place = Path("photos", KINDS[i % 2], "2024", f"{i}.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(i))
    assert find_data("photos").classes == KINDS[:2]


def test_several_data_sets_in_one_folder_are_not_mixed() -> None:
    for name in ("small", "large"):
        write(f"birds/{name}/train-00000-of-00001.parquet", table())
    with pytest.raises(UserError, match="holds several data sets: large, small"):
        find_data("birds")


def test_what_save_to_disk_writes_is_read() -> None:
    source = find_data(save("one", table()))
    assert source.classes == tuple(NAMES) and labels_by_level(everything(source)) == THIRDS
    save("all/train", table())
    save("all/test", table(range(30, 39)))
    Path("all/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    source = find_data("all")
    assert isinstance(source, WithValidation)
    data = everything(source)
    assert (len(data.calibration), len(data.held_out)) == (30, 9)


def test_what_hugging_faces_own_package_writes_is_read() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    # With a fingerprint, since some versions cannot make one of what some versions of pyarrow hold.
    content = datasets.table.InMemoryTable(table(names=None))
    info = datasets.DatasetInfo(features=features)
    made = datasets.Dataset(content, info=info, fingerprint="0" * 16)
    made.save_to_disk("saved")
    made.to_parquet("made.parquet")
    for name in ("saved", "made.parquet"):
        source = find_data(name)
        assert source.classes == tuple(NAMES) and labels_by_level(everything(source)) == THIRDS


@pytest.mark.parametrize("state", ["{", "{}", '{"_data_files": []}'])
def test_a_saved_data_set_without_its_files_is_one_line(state: str) -> None:
    save("one", table())
    Path("one/state.json").write_text(state)
    with pytest.raises(UserError, match=r"one/state\.json names no files that can be read"):
        find_data("one")


def test_broken_rows_are_named_and_skipped_or_fatal() -> None:
    rows = table().to_pydict()["image"]
    rows[3], rows[4], rows[5] = None, {"bytes": None, "path": None}, {"bytes": b"junk", "path": "5.png"}
    rows[6] = {"bytes": None, "path": "beside.png"}
    Path("beside.png").write_bytes(encoded(6))
    data = everything(find_data(write("a.parquet", table(image=rows))))
    assert labels_by_level(data) == {i: i % 3 for i in range(30) if i not in (3, 4, 5)}
    assert sorted(line.partition(":")[0] for line in data.skipped) == [
        "a.parquet row 3",
        "a.parquet row 4",
        "a.parquet row 5 (5.png)",
    ]
    with pytest.raises(UserError, match=r"3 images of a\.parquet cannot be used: "):
        everything(find_data("a.parquet", strict=True))


def test_a_damaged_page_costs_its_images_and_no_traceback() -> None:
    path = Path(write("a.parquet", table(range(60)), row_group_size=30, use_dictionary=False))
    whole = bytearray(path.read_bytes())
    place = parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    whole[place : place + 100] = bytes(100)
    path.write_bytes(whole)
    data = everything(find_data("a.parquet"))
    assert set(range(30)) <= set(labels_by_level(data)) and len(data.skipped) == 30


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing more", b"<html>"])
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_file_that_is_none_is_one_line(content: bytes, ending: str) -> None:
    Path(f"a.{ending}").write_bytes(content)
    with pytest.raises(UserError, match=rf"no file of a\.{ending} can be read; the first: a\.{ending}: "):
        find_data(f"a.{ending}")


def test_a_broken_file_among_others_is_said() -> None:
    write("d/a.parquet", table())
    Path("d/b.parquet").write_bytes(b"junk")
    data = everything(find_data("d"))
    assert labels_by_level(data) == THIRDS and [line.partition(":")[0] for line in data.skipped] == [
        "d/b.parquet"
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": None, "text": ["a"] * 30}, r"no column of images: label \(int64\), text \(string\)"),
        ({"label": [[0, 1]] * 30}, r"column label of a\.parquet is list<.*>, not one class per image"),
        ({"label": [3, *[0] * 29]}, r"1 of 30 labels of a\.parquet are out of range: 3"),
        ({"label": [-1, *[0] * 29]}, r"1 of 30 labels of a\.parquet are out of range: -1"),
        ({"label": [1] * 30}, r"images of one class only: ant"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(columns: dict[str, Any], message: str) -> None:
    write("a.parquet", table(**columns))
    with pytest.raises(UserError, match=message):
        find_data("a.parquet")
