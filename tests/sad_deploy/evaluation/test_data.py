"""Labelled images of any source: which are taken, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sad_deploy.evaluation.data import Labelled, labelled
from sad_runtime.errors import UserError
from sad_runtime.manifest import Color, Preprocessing

CLASSES = ("ant", "bee")
PREPROCESSING = Preprocessing(Color.GRAY, (4, 4), (4, 4))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty images; the grey level is the number, and an odd one is a bee. Two files are no images."""
    for i in range(20):
        place = tmp_path / "d" / CLASSES[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(place / f"{i:02}.png")
    for i in (3, 8):
        (tmp_path / "d" / CLASSES[i % 2] / f"{i:02}.png").write_bytes(b"no image")
    return tmp_path / "d"


def read(name: Path | str, count: int = 100, seed: int = 0) -> Labelled:
    return labelled(str(name), PREPROCESSING, CLASSES, count=count, seed=seed)


def numbers(found: Labelled) -> list[int]:
    return [int(level) for level in np.rint(found.images.pixels[:, 0, 0, 0] * 255)]


def test_each_image_has_its_label_and_broken_ones_are_replaced(folder: Path) -> None:
    found = read(folder)
    assert sorted(numbers(found)) == [i for i in range(20) if i not in (3, 8)]
    assert [i % 2 for i in numbers(found)] == found.images.labels.tolist()
    assert len(found.skipped) == 2 and "03.png" in " ".join(found.skipped)
    for seed in range(8):
        some = read(folder, 17, seed)
        assert len(set(numbers(some))) == 17, "a broken image costs none"


def test_the_seed_chooses_and_archives_choose_the_same(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for path in folder.rglob("*.png"):
            archive.write(path, path.relative_to(folder))
    first, again, other = (numbers(read(folder, 6, seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert numbers(read(tmp_path / "d.zip", 6)) == first


def test_images_without_a_label_are_refused(folder: Path) -> None:
    (folder / "wasp").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "wasp" / "1.png")
    with pytest.raises(UserError, match=r"1 of 21 images of .* have no label.*wasp/1\.png"):
        read(folder)


def test_nothing_that_can_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"the only image of .* cannot be used; the first: .*1\.png"):
        read(tmp_path)
    (tmp_path / "ant" / "2.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 2 images of .* can be used; the first: .*[12]\.png"):
        read(tmp_path)


def test_a_damaged_archive_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(UserError, match=r"a\.zip"):
        read(tmp_path / "a.zip")


def test_folders_are_read_without_torch_and_scikit_learn(folder: Path) -> None:
    script = (
        "import sys\n"
        "from sad_deploy.evaluation.data import labelled\n"
        "from sad_runtime.manifest import Color, Preprocessing\n"
        "p = Preprocessing(Color.GRAY, (4, 4), (4, 4))\n"
        f"labelled({str(folder)!r}, p, {CLASSES!r}, count=5, seed=0)\n"
        "assert not {'torch', 'sklearn'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
