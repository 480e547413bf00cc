"""Names in zips without the UTF-8 flag, as Windows writes them in the encoding of its language."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from sad_runtime.errors import UserError
from sad_runtime.run import RunOptions
from sad_runtime.sources import open_sources
from sad_runtime.sources.items import FailedItem

NAMES = {"cp932": "写真/猫.png", "cp866": "фото/кот.png", "gbk": "照片/猫.png"}


def zip_of(path: Path, name: str, encoding: str) -> Path:
    """zipfile marks what is not ASCII as UTF-8: another name of that length is written, then replaced."""
    raw = name.encode(encoding)
    stand_in = b"x" * (len(raw) - 4) + b".png"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(stand_in.decode(), b"data")
    path.write_bytes(path.read_bytes().replace(stand_in, raw))
    return path


def names_in(path: Path, encoding: str | None) -> list[str]:
    with open_sources([path], zip_encoding=encoding) as sources:
        assert sources.count() == 1
        return [item.name.removeprefix(f"{path}/") for item in sources]


@pytest.mark.parametrize(("encoding", "name"), NAMES.items())
def test_names_are_read_in_their_encoding(encoding: str, name: str, tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", name, encoding)
    assert names_in(path, encoding) == [name]
    assert names_in(path, None) != [name]
    with open_sources([path], zip_encoding=encoding) as sources:
        assert [item.read() for item in sources] == [b"data"]


def test_names_that_are_marked_as_utf8_stay_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("写真/猫.png", b"data")
    assert names_in(tmp_path / "a.zip", "cp866") == ["写真/猫.png"]


def test_names_in_another_encoding_are_an_archive_that_fails(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", "фото/кот.png", "cp866")
    (tmp_path / "list.txt").write_text(f"{path}\n")
    with open_sources([f"@{tmp_path / 'list.txt'}"], zip_encoding="ascii") as sources:
        (item,) = sources
    assert isinstance(item, FailedItem)
    assert item.message == "its names are not in ascii"
    with pytest.raises(UserError, match=r"a\.zip \(its names are not in ascii\)"):
        open_sources([path], zip_encoding="ascii")


@pytest.mark.parametrize("name", ["klingon", "", "rot13", "base64"])
def test_an_encoding_that_there_is_not_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--zip-encoding {name}: there is no such encoding"):
        open_sources([tmp_path], zip_encoding=name)


def test_resume_compares_it() -> None:
    assert RunOptions(zip_encoding="gbk").changing_rows("a.jsonl")["zip-encoding"] == "gbk"
