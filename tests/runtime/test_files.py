"""One writer for every file that a user names: whole or not at all, links followed, devices kept."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sad_runtime.errors import UserError
from sad_runtime.files import Destination, written_whole


@contextlib.contextmanager
def drained(fifo: Path) -> Iterator[bytearray]:
    """What a reader takes out of a pipe, complete after the context."""
    os.mkfifo(fifo)
    content = bytearray()

    def read() -> None:
        with fifo.open("rb") as file:
            content.extend(file.read())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    yield content
    reader.join(10)


def test_file_is_written_whole_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "f.txt"
    with written_whole(path, durable=True) as draft:
        draft.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_failure_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), written_whole(path) as draft:
        draft.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_of_the_replaced_file_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_text("old")
    path.chmod(0o640)
    with written_whole(path) as draft:
        draft.write_text("new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o640)


@pytest.mark.parametrize("exists", [True, False])
def test_link_is_followed_and_stays(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "other").mkdir()
    target = tmp_path / "other" / "real.txt"
    if exists:
        target.write_text("old")
    link = tmp_path / "link.txt"
    link.symlink_to(Path("other") / "real.txt")
    with written_whole(link) as draft:
        draft.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_pipe_is_written_into_if_allowed(tmp_path: Path) -> None:
    with drained(tmp_path / "pipe") as content, written_whole(tmp_path / "pipe", regular=False) as draft:
        draft.write_bytes(b"x" * 200_000)
    assert bytes(content) == b"x" * 200_000
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_link_to_a_pipe_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("pipe")
    with drained(tmp_path / "pipe") as content, written_whole(tmp_path / "link", regular=False) as draft:
        draft.write_bytes(b"whole")
    assert bytes(content) == b"whole"
    assert (tmp_path / "link").is_symlink()


def test_standard_output_by_its_device_name_is_written_into() -> None:
    code = (
        "from sad_runtime.files import written_whole\n"
        "with written_whole('/dev/stdout', regular=False) as draft: draft.write_text('whole')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "whole"


def test_file_without_a_name_any_more_is_written_into(tmp_path: Path) -> None:
    with (tmp_path / "gone").open("w+b") as file:
        (tmp_path / "gone").unlink()
        with written_whole(f"/proc/self/fd/{file.fileno()}", regular=False) as draft:
            draft.write_bytes(b"whole")
        assert file.read() == b"whole"
    assert not list(tmp_path.iterdir())


def test_pipe_and_socket_are_refused_and_stay(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is a pipe, which is not replaced"):
        Destination.of(tmp_path / "pipe", regular=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(UserError, match="is a socket, which is not replaced"):
            Destination.of(tmp_path / "socket")
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "socket").is_socket()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
def test_disk_is_refused_and_stays(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    try:
        os.mknod(disk, stat.S_IFBLK | 0o600, os.makedev(7, 250))
    except PermissionError:
        pytest.skip("devices cannot be made here")
    with pytest.raises(UserError, match="is a disk, which is not replaced"):
        Destination.of(disk)
    assert disk.is_block_device()


@pytest.mark.parametrize("name", ["", ".", "/", "..", "folder", "folder/", "absent/"])
def test_what_is_no_name_of_a_file_is_refused_with_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(UserError, match="--plot"):
        Destination.of(name, option="--plot")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_file_in_the_place_of_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/f\.txt: Not a directory"):
        Destination.of(tmp_path / "file" / "f.txt").check()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_read_only_file_and_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "f.txt").touch(mode=0o444)
    with pytest.raises(UserError, match="read-only"):
        Destination.of(tmp_path / "f.txt")
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match="Permission denied"):
        Destination.of(tmp_path / "g.txt").check()
    tmp_path.chmod(0o755)


def test_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f.bin"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*f\.bin"), written_whole(path) as draft:
            draft.write_bytes(bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_another_failure_of_the_body_is_not_taken_for_one_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "out" / "f.txt"):
        (tmp_path / "absent.txt").read_bytes()
    assert not list((tmp_path / "out").iterdir())


def test_checking_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_text("old")
    Destination.of(path).check()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_longest_name_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    with written_whole(path) as draft:
        draft.write_text("new")
    assert path.read_text() == "new"
