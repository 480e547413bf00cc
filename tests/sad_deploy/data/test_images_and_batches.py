from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from sad_deploy.data import CalibrationData, ImageSet, every_batch, find_data, training_batches
from sad_deploy.data.digits import PREPROCESSING, digits_splits
from sad_deploy.data.image_set import stratified_split
from sad_runtime.errors import UserError
from sad_runtime.manifest import Color, Preprocessing
from sad_runtime.preprocessing import load
from sad_runtime.sources import FileItem

TINY = Preprocessing(color=Color.RGB, resize=10, crop=(8, 8))


def load_pixels(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    return load(FileItem(str(path)), preprocessing).pixels


def numbered(n):
    pixels = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 1, 2, 2))
    return ImageSet(np.ascontiguousarray(pixels), np.arange(n))


def batch_numbers(batches):
    return [sorted((labels * 1).tolist()) for _, labels in batches]


def test_training_batches_are_full_and_cover_an_epoch_before_they_repeat():
    batches = batch_numbers(training_batches(numbered(10), batch_size=4, batches=5, seed=0))
    assert [len(batch) for batch in batches] == [4] * 5
    for first, second in (batches[0:2], batches[2:4]):
        assert len(set(first) | set(second)) == 8
    assert batches[0:2] != batches[2:4], "every epoch is shuffled anew"


def test_training_batches_from_the_middle_are_those_of_the_whole():
    whole = batch_numbers(training_batches(numbered(10), batch_size=4, batches=5, seed=0))
    for first in range(6):
        rest = training_batches(numbered(10), batch_size=4, batches=5, seed=0, first=first)
        assert batch_numbers(rest) == whole[first:]


def test_training_batches_follow_the_seed():
    runs = [batch_numbers(training_batches(numbered(20), batch_size=4, batches=5, seed=s)) for s in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


def test_images_stay_with_their_labels_and_become_pixels():
    for pixels, labels in training_batches(numbered(10), batch_size=5, batches=2, seed=0):
        assert pixels.dtype == torch.float32
        assert torch.equal(pixels[:, 0, 0, 0], labels.float() / 255)


def test_fewer_images_than_two_batches_are_refused_at_once():
    with pytest.raises(UserError, match="9 calibration images are fewer than two batches of 5") as error:
        training_batches(numbered(9), batch_size=5, batches=2, seed=0)
    assert "--batch-size 4" in str(error.value.hint)


def test_every_batch_gives_every_image_once_in_order():
    labels = [label for _, batch in every_batch(numbered(10), batch_size=4) for label in batch.tolist()]
    assert labels == list(range(10))


def test_a_stratified_split_divides_every_class_alike():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    first, second, rest = stratified_split(labels, (0.5, 0.2), np.random.default_rng(0))
    assert sorted(np.concatenate([first, second, rest])) == list(range(160))
    assert np.bincount(labels[first]).tolist() == [50, 25, 5]
    assert np.bincount(labels[second]).tolist() == [20, 10, 2]


def test_the_digits_are_split_once_for_all_and_in_proportion():
    training, held_out, test = digits_splits()
    assert (len(training), len(held_out), len(test)) == (1258, 270, 269)
    everything = {part.images[i].tobytes() for part in (training, held_out, test) for i in range(len(part))}
    assert len(everything) > 1790, "the parts share next to no image"
    assert all(np.bincount(part.labels, minlength=10).min() >= 25 for part in (held_out, test))
    digest = hashlib.sha256(training.labels.tobytes()).hexdigest()
    assert digest == hashlib.sha256(digits_splits()[0].labels.tobytes()).hexdigest()


def test_a_png_of_a_digit_is_the_same_image_at_inference(tmp_path):
    digit = digits_splits()[2].images[0]
    Image.fromarray(digit[0]).save(tmp_path / "digit.png")
    assert np.array_equal(load_pixels(tmp_path / "digit.png", PREPROCESSING), digit / np.float32(255))


@pytest.fixture
def class_folders(tmp_path):
    rng = np.random.default_rng(0)
    for name, n in (("zebra", 10), ("ant", 20)):
        (tmp_path / name).mkdir()
        for index in range(n):
            pixels = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index:02}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def read(source, **changes):
    arguments = {"calibration": 1000, "held_out": 1000, "seed": 0} | changes
    return source.load(TINY, **arguments)


def test_class_folders_are_sorted_and_split_by_class(class_folders):
    source = find_data(str(class_folders))
    data = read(source)
    assert source.classes == data.classes == ("ant", "zebra")
    assert np.bincount(data.calibration.labels).tolist() == [16, 8]
    assert np.bincount(data.held_out.labels).tolist() == [4, 2]
    assert data.test is None and data.skipped == ()


def test_folder_images_are_what_inference_reads(class_folders):
    data = read(find_data(str(class_folders)))
    expected = {load_pixels(path, TINY).tobytes() for path in class_folders.glob("*/*.png")}
    pixels = [image for part in (data.calibration, data.held_out) for image in part.images / np.float32(255)]
    assert {image.tobytes() for image in pixels} == expected


def test_only_as_many_images_as_asked_for_are_read(class_folders):
    seen: list[tuple[int, int]] = []
    data = read(find_data(str(class_folders)), calibration=5, held_out=2, decoded=lambda *x: seen.append(x))
    assert (len(data.calibration), len(data.held_out)) == (5, 2)
    assert seen[-1] == (7, 7)


def test_the_choice_of_folder_images_follows_the_seed(class_folders):
    runs = [read(find_data(str(class_folders)), calibration=5, seed=seed) for seed in (1, 1, 2)]
    assert np.array_equal(runs[0].calibration.images, runs[1].calibration.images)
    assert not np.array_equal(runs[0].calibration.images, runs[2].calibration.images)


def test_broken_images_are_skipped_and_listed(class_folders):
    for index in range(3):
        (class_folders / "ant" / f"{index:02}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    data = read(find_data(str(class_folders)))
    assert len(data.skipped) == 3 and all("ant" in line for line in data.skipped)
    assert len(data.calibration) + len(data.held_out) == 27
    for part in (data.calibration, data.held_out):
        for image, label in zip(part.images, part.labels, strict=True):
            name = ("ant", "zebra")[label]
            assert any(
                np.array_equal(image / np.float32(255), load_pixels(path, TINY))
                for path in (class_folders / name).glob("*.png")
                if path.stat().st_size > 100
            ), "labels must stay with their images"


def test_a_broken_image_is_replaced_while_there_are_others(class_folders):
    (class_folders / "ant" / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    for seed in range(8):
        data = read(find_data(str(class_folders)), calibration=23, held_out=4, seed=seed)
        assert (len(data.calibration), len(data.held_out)) == (23, 4)


def test_a_folder_of_broken_images_is_refused(tmp_path):
    for index in range(5):
        (tmp_path / f"{index}.jpg").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="none of the 4 images"):
        read(find_data(str(tmp_path)))


def test_a_flat_folder_has_no_labels(class_folders):
    source = find_data(str(class_folders / "ant"))
    data = read(source)
    assert source.classes is None and data.calibration.labels is None
    assert (len(data.calibration), len(data.held_out)) == (16, 4)


def test_class_folders_without_images_are_all_named(class_folders):
    (class_folders / "bee").mkdir()
    (class_folders / "cow").mkdir()
    with pytest.raises(UserError, match=r"2 of 4 class folders .*: bee, cow"):
        find_data(str(class_folders))


@pytest.mark.parametrize("name", ["absent", "file.txt"])
def test_data_that_is_no_folder_is_refused(tmp_path, name):
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(UserError, match="no data folder"):
        find_data(str(tmp_path / name))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        find_data(str(tmp_path))


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """Files of torchvision's CIFAR-10 format, with their MD5 taken for the published ones."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name, content):
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return [name, hashlib.md5(raw).hexdigest()]

    def batch(n):
        return {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(n)]}

    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [write("data_batch_1", batch(60))])
    monkeypatch.setattr(kind, "test_list", [write("test_batch", batch(40))])
    meta = write("batches.meta", {"label_names": [f"class{i}" for i in range(10)]})
    monkeypatch.setattr(kind, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return tmp_path


@pytest.mark.parametrize("inner", [False, True])
def test_cifar_is_read_from_its_files(cifar10, inner):
    path = cifar10 / "cifar-10-batches-py" if inner else cifar10
    source = find_data(f"cifar10:{path}")
    assert source.left_out == ()
    assert source.classes is not None and source.classes[3] == "class3"
    assert source.preprocessing is not None
    data = source.load(source.preprocessing, calibration=50, held_out=1000, seed=0)
    assert data.calibration.images.shape == (50, 3, 32, 32)
    assert data.test is not None
    assert np.bincount(data.held_out.labels).tolist() == np.bincount(data.test.labels).tolist() == [2] * 10


def test_cifar_pixels_are_channels_first(cifar10):
    raw = pickle.loads((cifar10 / "cifar-10-batches-py" / "data_batch_1").read_bytes())
    expected = {row.reshape(3, 32, 32).tobytes() for row in raw["data"]}
    source = find_data(f"cifar10:{cifar10}")
    assert source.preprocessing is not None
    data = source.load(source.preprocessing, calibration=60, held_out=10, seed=0)
    assert {image.tobytes() for image in data.calibration.images} == expected


def test_changed_cifar_files_are_refused_before_they_are_unpickled(cifar10):
    (cifar10 / "cifar-10-batches-py" / "test_batch").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(UserError, match="does not hold the published files"):
        find_data(f"cifar10:{cifar10}")


def test_absent_cifar_files_are_refused_and_not_downloaded(tmp_path):
    with pytest.raises(UserError, match="published files of CIFAR100") as error:
        find_data(f"cifar100:{tmp_path}")
    assert "download=True" in str(error.value.hint)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cifar10", "cifar100:"])
def test_cifar_without_a_path_is_refused(name):
    with pytest.raises(UserError, match="needs the folder"):
        find_data(name)


def test_with_enough_held_out_images_those_that_choose_eta_are_not_those_that_are_reported_on():
    images = ImageSet(np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1), np.repeat(np.arange(4), 10))
    data = CalibrationData("x", tuple("abcd"), images, images)
    assert data.with_test(21, seed=0) is data
    split = data.with_test(20, seed=0)
    first, second = (set(part.images.ravel().tolist()) for part in (split.held_out, split.test))
    assert len(first) == len(second) == 20 and not first & second
    assert np.bincount(split.held_out.labels).tolist() == [5] * 4
    assert split.with_test(1, seed=0) is split, "a source's own test images stay"
