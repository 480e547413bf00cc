"""The same image gives the same tensor and the same answer, in whichever form a program holds it."""

from __future__ import annotations

import io
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image

from sad_runtime import BadImagesError, Classifier, ErrorCode, ImageError, UserError, preprocess
from sad_runtime.given import GivenItem
from sad_runtime.manifest import Color, ExifOrientation, Preprocessing
from sad_runtime.preprocessing import load
from sad_runtime.sources import FileItem
from tests.support.image_zoo import PHOTO, bad_files, encoded, jpeg_with_exif

PREPROCESSING = Preprocessing(color=Color.RGB, resize=10, crop=(8, 8))
PNG = encoded("PNG")


def spooled(data: bytes) -> IO[bytes]:
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115 - closed when collected
    file.write(data)
    file.seek(0)
    return file  # type: ignore[return-value]


class ByteByByte:
    """As a socket's file may: fewer bytes than asked for."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int, /) -> bytes:
        return self._file.read(min(size, 7))


FORMS: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "path as text": str,
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "file": lambda path: path.open("rb"),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "spooled": lambda path: spooled(path.read_bytes()),
    "byte by byte": lambda path: ByteByByte(path.read_bytes()),
    "PIL, not loaded": Image.open,
    "PIL, loaded": lambda path: Image.open(path).convert("RGB"),
    "array": lambda path: np.asarray(Image.open(path)),
    "array, strided": lambda path: np.asarray(Image.open(path))[:, ::-1][:, ::-1],
    "item": lambda path: FileItem(str(path)),
}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(PNG)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_is_the_tensor_of_infer(form: str, photo: Path) -> None:
    expected = load(FileItem(str(photo)), PREPROCESSING).pixels
    found = preprocess(FORMS[form](photo), PREPROCESSING)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_predict_and_stream_answer_alike_for_every_form(bundle_folder: Path, photo: Path) -> None:
    with Classifier.load(bundle_folder, backend="cpu") as classifier:
        expected = classifier.predict(preprocess(photo, classifier.manifest.preprocessing)[None]).logits
        for make in FORMS.values():
            np.testing.assert_array_equal(classifier.predict(make(photo)).logits, expected)
        several = classifier.predict([make(photo) for make in FORMS.values()], outputs=("saliency",))
        np.testing.assert_allclose(several.logits, np.repeat(expected, len(FORMS), 0), rtol=1e-5, atol=1e-5)
        assert several.saliency is not None
        assert several.saliency.shape == (len(FORMS), 3, 8, 8)
        rows = list(classifier.stream((make(photo) for make in FORMS.values()), batch_size=4))
        assert {row.label for row in rows} == {int(expected.argmax())}
        assert [row.path for row in rows[:3]] == [str(photo), str(photo), "images[2]"]
        assert [row.path for row in classifier.stream(PNG)] == ["images[0]"]
        assert [row.path for row in classifier.stream(photo.open("rb"))] == [str(photo)]


def test_more_than_a_piece_are_in_order(bundle_folder: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (70, 9, 11, 3), dtype=np.uint8)
    with Classifier.load(bundle_folder, backend="cpu") as classifier:
        together = classifier.predict(pictures, outputs=("plain_logits",))
        alone = [classifier.predict(picture) for picture in pictures]
        assert together.plain_logits is not None
        assert len(together.plain_logits) == 70
        np.testing.assert_allclose(
            together.logits, np.concatenate([one.logits for one in alone]), rtol=1e-4, atol=1e-4
        )
        assert len(set(together.labels.tolist())) > 1
        assert classifier.predict([]).logits.shape == (0, 4)


def test_floats_are_the_input_itself(bundle_folder: Path) -> None:
    floats = np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)
    assert np.shares_memory(preprocess(floats[0], PREPROCESSING), floats)
    with Classifier.load(bundle_folder, backend="cpu") as classifier:
        assert classifier._checked(floats) is floats
        expected = classifier.predict(floats).logits
        for same in (floats.astype(np.float64), list(floats), tuple(floats.astype(np.float64))):
            np.testing.assert_array_equal(classifier.predict(same).logits, expected)
        np.testing.assert_allclose(classifier.predict(floats[1]).logits, expected[1:2], rtol=1e-5, atol=1e-5)


def test_grey_and_transparent_pictures_are_converted_as_files_are() -> None:
    grey = PHOTO[..., 0]
    of_file = preprocess(encoded("PNG", grey), PREPROCESSING)
    for picture in (grey, grey[..., None]):
        np.testing.assert_array_equal(preprocess(picture, PREPROCESSING), of_file)
    transparent = np.dstack([PHOTO, grey])
    np.testing.assert_array_equal(preprocess(transparent, PREPROCESSING), preprocess(PHOTO, PREPROCESSING))


@pytest.mark.parametrize("exif", ExifOrientation)
def test_a_picture_of_pillow_is_turned_as_its_file_is(exif: ExifOrientation, tmp_path: Path) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    data = jpeg_with_exif(tag.tobytes())
    preprocessing = Preprocessing(color=Color.RGB, resize=(8, 8), crop=(8, 8), exif_orientation=exif)
    image = Image.open(io.BytesIO(data))
    for _ in range(2):  # what was given is not turned itself
        np.testing.assert_array_equal(preprocess(image, preprocessing), preprocess(data, preprocessing))
    assert image.size == (80, 60)


@pytest.mark.parametrize(
    ("wrong", "code", "message"),
    [
        (b"", ErrorCode.EMPTY, "empty"),
        (io.BytesIO(b"text"), ErrorCode.NOT_AN_IMAGE, "not an image"),
        ("absent.png", ErrorCode.NOT_FOUND, "no such file"),
        (PHOTO.transpose(2, 0, 1), ErrorCode.UNSUPPORTED, r"as image.transpose\(1, 2, 0\) is; got \(3, 60"),
        (PHOTO[:, :, :2], ErrorCode.UNSUPPORTED, r"got \(60, 80, 2\)"),
        (PHOTO[:0], ErrorCode.CORRUPT, "80×0 holds no pixel"),
        (PHOTO.astype(np.int64), ErrorCode.UNSUPPORTED, "of int64"),
        (np.float32(0.5), ErrorCode.UNSUPPORTED, None),
        (np.full((3, 8, 8), np.nan), ErrorCode.UNSUPPORTED, "not finite"),
        (np.full((3, 8, 8), 1e300), ErrorCode.UNSUPPORTED, "not finite"),
        (np.full((3, 8, 8), 255.0), ErrorCode.UNSUPPORTED, r"in \[0, 1\], got 255 to 255"),
        (Image.new("F", (9, 9)), ErrorCode.UNSUPPORTED, "32-bit float"),
        (Image.new("RGB", (0, 9)), ErrorCode.CORRUPT, "holds no pixel"),
        (Image.open(io.BytesIO(PNG[:-60])), ErrorCode.TRUNCATED, "ends before"),
    ],
)
def test_an_image_that_cannot_be_used_has_the_code_of_its_row(
    wrong: Any, code: ErrorCode, message: str | None
) -> None:
    if message is None:  # a number is no array
        with pytest.raises(UserError, match="float32 is no image"):
            preprocess(wrong, PREPROCESSING)
        return
    with pytest.raises(ImageError, match=message) as caught:
        preprocess(wrong, PREPROCESSING)
    assert caught.value.code is code
    assert "\n" not in caught.value.message


def test_too_many_pixels_are_refused_in_every_form(photo: Path) -> None:
    for make in FORMS.values():
        with pytest.raises(ImageError, match="80×60 is more than 4799 pixels") as caught:
            preprocess(make(photo), PREPROCESSING, max_pixels=4799)
        assert caught.value.code is ErrorCode.TOO_LARGE
        preprocess(make(photo), PREPROCESSING, max_pixels=4800)


def closed() -> IO[bytes]:
    file = io.BytesIO(PNG)
    file.close()
    return file


class Broken:
    def read(self, size: int, /) -> bytes:
        raise EOFError("stream ended\nbefore the member")


class Unready:
    def read(self, size: int, /) -> bytes | None:
        return None


@pytest.mark.parametrize("file", [closed(), Broken(), Unready()])
def test_a_file_object_that_fails_is_an_unreadable_image(file: Any) -> None:
    with pytest.raises(ImageError, match=r"cannot be read: .+") as caught:
        preprocess(file, PREPROCESSING)
    assert caught.value.code is ErrorCode.UNREADABLE
    assert "\n" not in caught.value.message


def test_a_file_opened_as_text_is_the_programs_mistake() -> None:
    with pytest.raises(UserError, match="opened as text") as caught:
        preprocess(io.StringIO("x"), PREPROCESSING)  # type: ignore[arg-type]
    assert not isinstance(caught.value, ImageError)
    assert caught.value.hint == 'open it with mode "rb"'


def test_bad_images_among_good_ones_are_all_named(bundle_folder: Path, photo: Path) -> None:
    mixed = [photo, b"", PNG, "absent.png", PHOTO, b"text"]
    with Classifier.load(bundle_folder, backend="cpu") as classifier:
        with pytest.raises(
            BadImagesError, match=r"images\[1\]: the file is empty; images\[3\]: no such"
        ) as caught:
            classifier.predict(mixed)
        codes = {i: error.code for i, error in caught.value.failures.items()}
        assert codes == {1: ErrorCode.EMPTY, 3: ErrorCode.NOT_FOUND, 5: ErrorCode.NOT_AN_IMAGE}
        good = [image for i, image in enumerate(mixed) if i not in caught.value.failures]
        assert len(classifier.predict(good).labels) == 3
        rows = list(classifier.stream(mixed, batch_size=4))
    assert {i: row.error.code for i, row in enumerate(rows) if row.error} == codes


def test_a_message_names_a_few_of_many() -> None:
    error = BadImagesError({i: ImageError(ErrorCode.EMPTY, "the file is empty") for i in range(20)})
    assert error.message.endswith("images[4]: the file is empty; and 15 more")
    assert len(error.failures) == 20


@pytest.mark.parametrize("wrong", [3, None, np.zeros((2, 3, 8, 8), np.float32)])
def test_what_is_no_image_ends_a_stream_with_its_place(bundle_folder: Path, wrong: Any) -> None:
    with Classifier.load(bundle_folder, backend="cpu") as classifier:
        stream = classifier.stream(iter([PNG, wrong]), batch_size=1)
        with pytest.raises(UserError, match=r"images\[1\]: "):
            list(stream)
    assert not [thread for thread in threading.enumerate() if thread.name in ("find", "model")]


def test_one_lazily_opened_picture_given_many_times_is_loaded_once(
    bundle_folder: Path, tmp_path: Path
) -> None:
    big = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    path = tmp_path / "big.png"
    Image.fromarray(big).save(path)
    with Classifier.load(bundle_folder, backend="cpu") as classifier:
        expected = classifier.predict(path).labels[0]
        assert set(classifier.predict([Image.open(path)] * 24).labels.tolist()) == {expected}


@pytest.mark.parametrize("name", bad_files())
def test_hostile_files_are_refused_alike_as_bytes_and_opened(name: str, bundle_folder: Path) -> None:
    bad = bad_files()[name]
    for image in (bad.data, io.BytesIO(bad.data)):
        with pytest.raises(ImageError) as caught:
            preprocess(image, PREPROCESSING)
        assert caught.value.code is bad.code


def test_an_item_of_a_decoded_picture_has_no_file() -> None:
    with pytest.raises(UserError, match="has no file"):
        GivenItem.of(PHOTO, 0).read()
