from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sad_runtime.errors import ErrorCode, ImageError, UserError
from sad_runtime.images import MAX_FILE_BYTES
from sad_runtime.sources import (
    FileItem,
    Item,
    LeftOut,
    Shard,
    Stamp,
    absolute,
    describe_left_out,
    open_sources,
    read_file,
)
from sad_runtime.sources.names import sorted_names


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


ALL = ["images/a.JPG", "images/b.png", "images/sub/a.gif", "images/sub/deep/y.WebP", "images/sub/z.tiff"]


def names(*sources: str | Path, exclude: tuple[str | Path, ...] = ()) -> list[str]:
    """Names of the items, which count() and every second pass agree with, unique under the base."""
    with open_sources(list(map(os.fspath, sources)), exclude=exclude) as opened:
        found = [item.name for item in opened]
        assert opened.count() == len(found)
        assert [item.name for item in opened] == found
        relative = [absolute(name).relative_to(opened.base) for name in found]
        assert len(set(relative)) == len(found)
    return found


def problem(*sources: str, exclude: tuple[str, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        open_sources(sources, exclude=exclude)
    return caught.value.message


def outcome(item: Item) -> bytes | ErrorCode:
    try:
        return item.read()
    except ImageError as error:
        assert "\n" not in error.message
        return error.code


def outcomes(*sources: str) -> dict[str, bytes | ErrorCode]:
    with open_sources(sources) as opened:
        return {item.name: outcome(item) for item in opened}


# Files


def test_file_reads_itself_and_knows_its_stamp(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"12345")
    os.utime(tmp_path / "a.jpg", ns=(7, 1_234_567_891))
    item = FileItem(str(tmp_path / "a.jpg"))
    assert item.read() == b"12345"
    assert item.stamp() == Stamp(5, 1_234_567_891)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    for name in ("absent", "dangling", "loop", "file/under", "null\0character"):
        item = FileItem(f"{tmp_path}/{name}")
        assert outcome(item) is ErrorCode.NOT_FOUND
        assert item.stamp() is None


def test_file_that_vanished_after_it_was_found(folder: Path) -> None:
    with open_sources(["images"]) as opened:
        items = iter(opened)
        first = next(items)
        Path(first.name).unlink()
        assert outcome(first) is ErrorCode.NOT_FOUND
        assert first.stamp() is None


def test_what_is_no_regular_file_is_unreadable_and_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mknod(tmp_path / "socket.jpg", stat.S_IFSOCK | 0o600)
    for path in (tmp_path, tmp_path / "pipe.jpg", tmp_path / "socket.jpg", Path("/dev/zero")):
        item = FileItem(str(path))
        assert outcome(item) is ErrorCode.UNREADABLE
        assert item.stamp() is None


def test_enormous_file_is_too_large(tmp_path: Path) -> None:
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ImageError) as caught:
        read_file(tmp_path / "sparse.png")
    assert caught.value.code is ErrorCode.TOO_LARGE


def test_path_that_is_too_long_is_unreadable() -> None:
    assert outcome(FileItem("x" * 300 + ".jpg")) is ErrorCode.UNREADABLE


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """An empty folder, in which permissions count for root too: it gives its rights up meanwhile."""
    path = Path(tempfile.mkdtemp())
    user = os.geteuid()
    if user == 0:
        os.chown(path, 65534, -1)
        os.seteuid(65534)
    try:
        yield path
    finally:
        os.seteuid(user)
        shutil.rmtree(path)


def test_file_without_permission_is_unreadable(unprivileged: Path) -> None:
    (unprivileged / "a.jpg").touch(mode=0)
    with open_sources([str(unprivileged)]) as opened:
        assert [outcome(item) for item in opened] == [ErrorCode.UNREADABLE]


def test_folder_without_permission_is_one_item_or_an_error_if_named(unprivileged: Path) -> None:
    (unprivileged / "closed").mkdir(mode=0)
    (unprivileged / "a.jpg").write_bytes(b"a")
    (unprivileged / "z.jpg").write_bytes(b"z")
    assert outcomes(str(unprivileged)) == {
        f"{unprivileged}/a.jpg": b"a",
        f"{unprivileged}/closed": ErrorCode.UNREADABLE,
        f"{unprivileged}/z.jpg": b"z",
    }
    assert "closed (the folder cannot be read: Permission denied)" in problem(f"{unprivileged}/closed")
    (unprivileged / "closed").chmod(0o300)
    (unprivileged / "closed" / "b.jpg").write_bytes(b"b")  # may be opened, but not found
    named = outcomes(str(unprivileged), str(unprivileged), f"{unprivileged}/closed/b.jpg")
    assert list(named.values()) == [b"a", ErrorCode.UNREADABLE, b"z", b"b"]


# Folders


def test_folder_is_read_recursively_and_sorted(folder: Path) -> None:
    assert names("images") == ALL


def test_order_is_that_of_the_bytes_of_the_paths(tmp_path: Path) -> None:
    odd = [
        "sub/x.png",
        "sub.png",
        "sub-1.png",
        "Z.png",
        "é.png",
        "e.png",
        "\udcff.png",
        "日本.png",
        "a b.png",
    ]
    odd += ["-dash.png", "line\nend.png", "tab\t.png", '"quoted".png', "sub/sub/q.png", "sub0.png"]
    for name in odd:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path) == sorted((f"{tmp_path}/{name}" for name in odd), key=os.fsencode)


def test_file_given_by_name_is_taken_whatever_its_ending(folder: Path) -> None:
    assert names("images/c.txt", "images/._a.jpg") == ["images/c.txt", "images/._a.jpg"]


def test_names_are_as_the_user_writes_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names("./images//sub/") == ALL[2:]
    monkeypatch.chdir(folder)
    assert names(".")[0] == "a.JPG"
    assert names("../images")[0] == "../images/a.JPG"
    assert names(folder)[0] == f"{folder}/a.JPG"
    (folder / "-x.jpg").touch()
    assert names("-x.jpg") == ["-x.jpg"]


def test_linked_loop_ends_and_adds_nothing(folder: Path) -> None:
    before = names("images")
    (folder / "a_loop").symlink_to(folder)
    (folder / "sub" / "up").symlink_to("..")
    (folder / "alias").symlink_to(folder / "sub")
    (folder / "itself").symlink_to("itself")
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


def test_folder_too_deep_to_be_read_is_an_item_that_fails(tmp_path: Path) -> None:
    """Deeper than any path: what even root cannot read."""
    (tmp_path / "a.jpg").touch()
    part = "d" * 250
    outer = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir(part, dir_fd=outer)
        inner = os.open(part, os.O_RDONLY, dir_fd=outer)
        os.close(outer)
        outer = inner
    os.close(outer)
    found = outcomes(str(tmp_path))
    assert list(found.values()) == [b"", ErrorCode.UNREADABLE]


def test_archives_inside_a_folder_stay_closed(folder: Path) -> None:
    write_zip(folder / "z.zip", {"x.jpg": b"x"})
    assert names("images") == ALL


def test_results_inside_the_input_are_not_read(folder: Path) -> None:
    (folder / "overlays").mkdir()
    (folder / "overlays" / "b.png.png").touch()
    (folder / "out.png").touch()
    (folder / "sub" / "out.png").touch()
    (folder / "link.png").symlink_to("overlays/b.png.png")
    (folder / "overlays" / "sub").mkdir()
    (folder / "overlays" / "sub" / "c.png").touch()
    (folder / "linked").symlink_to("overlays/sub")
    exclude = ("images/overlays", folder / "out.png", "images/not-yet-there")
    expected = sorted([*ALL, "images/sub/out.png", "images/link.png"])
    assert names("images", exclude=exclude) == expected
    assert names("images/*", exclude=exclude)[-1] == "images/sub/z.tiff"
    assert not [name for name in names("images/**/*.png", exclude=exclude) if "overlays" in name]
    message = problem("images/overlays", "images/overlays/*.png", exclude=("images/overlays",))
    assert message.count("results are written there") == 2


def test_a_folder_of_many_files_is_walked_in_little_memory(tmp_path: Path) -> None:
    for i in range(10_000):
        os.close(os.open(tmp_path / f"{(i * 7919) % 10_000:06}.jpg", os.O_CREAT | os.O_WRONLY))
    with open_sources([str(tmp_path)]) as opened:
        tracemalloc.start()
        assert opened.count() == 10_000
        counting = tracemalloc.get_traced_memory()[1]
        previous = ""
        for item in opened:
            assert item.name > previous
            previous = item.name
        iterating = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert counting < 50_000
    assert iterating < 80 * 10_000


def test_a_list_of_many_long_paths_is_remembered_in_little_memory(tmp_path: Path) -> None:
    deep = f"{'a' * 200}/{'b' * 200}"
    (tmp_path / "list").write_text("".join(f"{deep}/{i:06}.jpg\n" for i in range(10_000)))
    with open_sources([f"@{tmp_path}/list"]) as opened:
        tracemalloc.start()
        assert sum(1 for _ in opened) == 10_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 200 * 10_000


@given(st.lists(st.binary(min_size=1, max_size=6).filter(lambda name: b"\0" not in name), max_size=60))
def test_names_are_sorted_by_their_bytes(raw: list[bytes]) -> None:
    found = list(sorted_names(map(os.fsdecode, raw)))
    assert list(map(os.fsencode, found)) == sorted(raw)


# Patterns and overlaps


def test_pattern_means_what_the_shell_makes_of_it(folder: Path) -> None:
    assert names("images/[ac].*") == ["images/a.JPG", "images/c.txt"]
    assert names("images/**/*.gif") == ["images/sub/a.gif"]
    assert names("images/su?") == names("images/sub")


def test_existing_name_with_pattern_characters_is_a_name(folder: Path) -> None:
    (folder / "a[1].png").touch()
    (folder / "a1.png").touch()
    (folder.parent / "@list.png").touch()
    assert names("images/a[1].png") == ["images/a[1].png"]
    assert names("@list.png") == ["@list.png"]


def test_path_given_twice_is_taken_once_where_it_came_first(folder: Path) -> None:
    assert names("images/b.png", "./images", folder / "b.png", "images/../images/a.JPG") == [
        "images/b.png",
        "images/a.JPG",
        *ALL[2:],
    ]


def test_overlapping_sources_give_every_file_once(folder: Path) -> None:
    (folder / "alias").symlink_to("sub")
    assert names("images", "images/sub", "images/sub/deep/y.WebP", "images/*/*", "images/alias") == ALL
    assert names("images/sub/deep/y.WebP", "images/sub", "images") == [ALL[3], ALL[2], ALL[4], *ALL[:2]]
    assert names("images/alias/a.gif", "images/sub/a.gif", "images/alias") == [
        "images/alias/a.gif",
        "images/alias/deep/y.WebP",
        "images/alias/z.tiff",
    ]


def test_what_a_folder_leaves_out_is_taken_when_it_is_named(folder: Path) -> None:
    left_out = ["images/c.txt", "images/._a.jpg", "images/.hidden/x.png"]
    assert names("images", *left_out) == [*ALL, *left_out]


TREE = ["a/1.jpg", "a/b/2.jpg", "a/b/.h/3.jpg", "a/b/c/4.jpg", "a/b/c/5.txt", "d/6.jpg", "d/e/7.jpg"]
SOURCES = [".", "a", "a/b", "a/b/c", "d", "a/l", "d/l", "a/b/.h", "a/**/*.jpg", *TREE]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for name in TREE:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "a/l").symlink_to("../d")
    (root / "d/l").symlink_to("../a")
    return root


@settings(max_examples=60, deadline=None)
@given(chosen=st.lists(st.sampled_from(SOURCES), min_size=1, max_size=5))
def test_any_sources_in_any_order_give_every_file_once(tree: Path, chosen: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tree)
        together = [os.path.realpath(name) for name in names(*chosen)]
        alone = {os.path.realpath(name) for source in chosen for name in names(source)}
    assert len(set(together)) == len(together)
    assert set(together) == alone


def test_sources_of_no_use_are_all_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n\r\n")
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4")
    write_zip(tmp_path / "none.zip", {"x.txt": b"x"})
    useless = [
        "empty",
        "absent",
        "*.nothing",
        "@absent.txt",
        "@empty.txt",
        "broken.zip",
        "none.zip",
        "@empty",
    ]
    message = problem("images", *useless, "-", "-")
    for expected in (
        "empty (no image in it)",
        "absent (no such file or folder)",
        "*.nothing (no such file or folder)",
        "@absent.txt (no such file)",
        "@empty.txt (no path in it)",
        "broken.zip (the archive ends early)",
        "none.zip (no image in it)",
        "@empty (not a regular file; - reads a list from standard input)",
        "- (standard input can be read only once)",
    ):
        assert expected in message
    assert "images " not in message


def test_base_is_the_deepest_folder_of_all_sources(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("images/sub/a.gif\nimages/sub/deep/y.WebP\n")
    write_zip(folder / "z.zip", {"x.jpg": b"x"})
    for sources, base in [
        (["images"], folder),
        (["images/sub/deep"], folder / "sub" / "deep"),
        (["images/b.png"], folder),
        (["images/sub/deep", "images/b.png"], folder),
        (["images/sub/a.gif", "images/sub/deep"], folder / "sub"),
        (["@list.txt"], folder / "sub"),
        (["images/sub/**/*.gif"], folder / "sub"),
        (["images/z.zip"], folder),
        (["images", "-"], Path("/")),
        (["images", "/etc/hostname"], Path("/")),
    ]:
        assert open_sources(sources, stdin=io.StringIO()).base == base


# Lists


def write_list(content: bytes) -> str:
    Path("list").write_bytes(content)
    return "@list"


def test_list_gives_its_paths_in_order(folder: Path) -> None:
    assert names(write_list(b"images/sub/z.tiff\r\n\n./images/c.txt\nimages/sub\n")) == [
        "images/sub/z.tiff",
        "images/c.txt",
        "images/sub/a.gif",
        "images/sub/deep/y.WebP",
    ]


def test_nothing_in_a_list_has_a_meaning_but_the_line_s_end(folder: Path) -> None:
    odd = [b"#1.jpg", b"-.jpg", b"@x.jpg", b" a .jpg", b"*.jpg", b"\xff.jpg", b"-", "é.jpg".encode()]
    for name in odd:
        Path(os.fsdecode(name)).write_bytes(name)
    found = outcomes(write_list(b"\n".join(odd)))
    assert found == {os.fsdecode(name): name for name in odd}


def test_list_with_null_characters_holds_names_with_lines_in_them(folder: Path) -> None:
    Path("a\nb.jpg").write_bytes(b"1")
    Path("c\r").write_bytes(b"2")
    assert outcomes(write_list(b"a\nb.jpg\0\0c\r\0")) == {"a\nb.jpg": b"1", "c\r": b"2"}


def test_path_of_a_list_that_does_not_exist_is_an_item_that_fails(folder: Path) -> None:
    Path("zeros").write_bytes(b"0")
    found = outcomes(write_list(b"absent.jpg\nabsent/\nimages/a.JPG\nabsent.zip\nlist/x.jpg\n"))
    assert found == {
        "absent.jpg": ErrorCode.NOT_FOUND,
        "absent/": ErrorCode.NOT_FOUND,
        "images/a.JPG": b"",
        "absent.zip": ErrorCode.NOT_FOUND,
        "list/x.jpg": ErrorCode.NOT_FOUND,
    }


def test_list_and_folder_give_a_file_once(folder: Path) -> None:
    assert sorted(
        names(write_list(b"images/b.png\nimages/b.png\nimages/sub/../a.JPG\n"), "images")
    ) == sorted(["images/sub/../a.JPG", "images/b.png", *ALL[2:]])
    assert names("images", "@list") == ALL
    assert names("images", write_list(b"images/b.png\nimages/absent.png")) == [*ALL, "images/absent.png"]


def test_list_without_lines_or_in_utf16_is_refused(folder: Path) -> None:
    for content, expected in [
        (b"x" * 100_000, "more than 65536 bytes"),
        ("a.jpg".encode("utf-16"), "UTF-16"),
    ]:
        with pytest.raises(UserError, match=expected):
            open_sources([write_list(content)])


def test_standard_input_is_read_as_a_list_and_only_once(folder: Path) -> None:
    for text in ("images/b.png\r\n\nabsent.jpg\n", "images/b.png\0absent.jpg"):
        opened = open_sources(["-"], stdin=io.StringIO(text))
        assert opened.count() is None
        assert {item.name: outcome(item) for item in opened} == {
            "images/b.png": b"",
            "absent.jpg": ErrorCode.NOT_FOUND,
        }
        with pytest.raises(RuntimeError, match="read before"):
            next(iter(opened))


def test_standard_input_is_not_waited_for(folder: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, encoding="utf-8") as stdin:
        items = iter(open_sources(["-"], stdin=stdin))
        for name in ("images/b.png", "images/a.JPG"):
            os.write(writing, f"{name}\n".encode())
            assert next(items).name == name  # the other end is still open
        os.close(writing)
        assert next(items, None) is None


def test_find_print0_through_a_real_pipe(folder: Path) -> None:
    (folder / "line\nend.png").touch()
    code = "from sad_runtime.sources import open_sources\nfor i in open_sources(['-']): print(ascii(i.name))"
    found = subprocess.run(
        f'find images -name "*.png" -print0 | {sys.executable} -c "{code}"',
        shell=True,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "'images/line\\nend.png'" in found.splitlines()


# Shards


@settings(deadline=None)
@given(count=st.integers(1, 9))
def test_shards_are_disjoint_and_complete(count: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        for i in range(7):
            Path(root, f"{i}.jpg").touch()
        whole = names(root)
        parts = []
        for i in range(1, count + 1):
            part = open_sources([root], shard=Shard(i, count))
            parts.append([item.name for item in part])
            assert part.count() == len(parts[-1])
    assert parts == [whole[i::count] for i in range(count)]


def test_shard_is_parsed_and_shown() -> None:
    assert Shard.parse("2/8") == Shard(2, 8)
    assert str(Shard.parse("008/8")) == "8/8"


@pytest.mark.parametrize(
    "text", ["", "2", "0/8", "9/8", "1/0", "-1/2", "1/2/3", "a/b", "1/ 2", "²/3", "1/1\n"]
)
def test_shard_that_is_none_says_what_it_should_be(text: str) -> None:
    with pytest.raises(UserError) as caught:
        Shard.parse(text)
    assert "I/N" in (caught.value.hint or "")


# Archives

PACKINGS = {".tar": bytes, ".tar.gz": gzip.compress, ".tar.bz2": bz2.compress, ".tar.xz": lzma.compress}


def write_zip(path: Path, members: dict[str, bytes], **options: int) -> None:
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, data in members.items():
            file.writestr(name, data)


def tar_bytes(members: list[tuple[str, bytes]], format_: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


MEMBERS = {
    "z.jpg": b"zz",
    "inside/": b"",
    "inside/a.PNG": b"a" * 3000,
    "inside/notes.txt": b"no",
    "__MACOSX/._z.jpg": b"no",
    ".hidden/x.jpg": b"no",
    "b.gif": b"",
}


def test_zip_is_read_in_place_in_name_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_zip(tmp_path / "p.zip", MEMBERS, compression=zipfile.ZIP_DEFLATED)
    assert names("p.zip") == ["p.zip/b.gif", "p.zip/inside/a.PNG", "p.zip/z.jpg"]
    assert list(outcomes("p.zip").values()) == [b"", b"a" * 3000, b"zz"]
    assert list(tmp_path.iterdir()) == [tmp_path / "p.zip"]


@pytest.mark.parametrize("ending", PACKINGS)
def test_tar_is_read_in_place_in_its_own_order(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = tar_bytes([(name, data) for name, data in MEMBERS.items() if not name.endswith("/")])
    (tmp_path / f"p{ending}").write_bytes(PACKINGS[ending](content))
    assert names(f"p{ending}") == [f"p{ending}/{name}" for name in ("z.jpg", "inside/a.PNG", "b.gif")]
    assert list(outcomes(f"p{ending}").values()) == [b"zz", b"a" * 3000, b""]
    assert names(f"p{ending}", f"p{ending}", "p.*") == names(f"p{ending}")
    assert list(tmp_path.iterdir()) == [tmp_path / f"p{ending}"]


def test_what_an_archive_is_its_content_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_zip(tmp_path / "really-zip.TAR", {"a.jpg": b"a"})
    (tmp_path / "really-xz.zip").write_bytes(lzma.compress(tar_bytes([("b.jpg", b"b")])))
    (tmp_path / "no.tgz").write_bytes(b"text" * 500)
    write_zip(tmp_path / "unknown.dat", {"a.jpg": b"a"})
    assert outcomes("really-zip.TAR", "really-xz.zip") == {
        "really-zip.TAR/a.jpg": b"a",
        "really-xz.zip/b.jpg": b"b",
    }
    assert "no.tgz (the archive is damaged" in problem("no.tgz")
    assert names("unknown.dat") == ["unknown.dat"]


def test_archives_of_a_list_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_zip(tmp_path / "a.zip", {"x.jpg": b"x"})
    (tmp_path / "b.tar").write_bytes(tar_bytes([("y.jpg", b"y")]))
    (tmp_path / "c.zip").write_bytes(b"no")
    (tmp_path / "list").write_text("b.tar\na.zip\nc.zip\n")
    assert outcomes("@list") == {
        "b.tar/y.jpg": b"y",
        "a.zip/x.jpg": b"x",
        "c.zip": ErrorCode.TRUNCATED,
    }


HOSTILE_NAMES = ["/etc/a.jpg", "../../b.jpg", "c/../../../d.jpg", "./e.jpg", "f//g.jpg", "/../../../h.jpg"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_of_members_never_leave_the_archive(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "zip":
        write_zip(tmp_path / "x.zip", dict.fromkeys(HOSTILE_NAMES, b"1"))
    else:
        (tmp_path / "x.tar").write_bytes(tar_bytes([(name, b"1") for name in HOSTILE_NAMES]))
    safe = ["etc/a.jpg", "b.jpg", "c/d.jpg", "e.jpg", "f/g.jpg", "h.jpg"]
    assert sorted(names(f"x.{kind}")) == sorted(f"x.{kind}/{name}" for name in safe)


def test_members_of_the_same_name_are_all_read_under_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    members = [("a.jpg", b"1"), ("a (2).jpg", b"2"), ("../a.jpg", b"3"), ("a.jpg", b"4")]
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    assert outcomes("x.tar") == {
        "x.tar/a.jpg": b"1",
        "x.tar/a (2).jpg": b"2",
        "x.tar/a (3).jpg": b"3",
        "x.tar/a (4).jpg": b"4",
    }


def test_stamp_of_a_member_is_its_size_and_the_archive_s_time(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {"x.jpg": b"12345"})
    (tmp_path / "a.tar").write_bytes(tar_bytes([("x.jpg", b"12345")]))
    for name in ("a.zip", "a.tar"):
        os.utime(tmp_path / name, ns=(7, 1_234_567_891))
        with open_sources([str(tmp_path / name)]) as opened:
            assert [item.stamp() for item in opened] == [Stamp(5, 1_234_567_891)]


def test_members_are_read_by_many_threads_and_after_the_tape_has_moved_on(tmp_path: Path) -> None:
    contents = {f"{i:03}.jpg": bytes([i]) * (50_000 + i) for i in range(100)}
    write_zip(tmp_path / "a.zip", contents, compression=zipfile.ZIP_DEFLATED)
    (tmp_path / "a.tgz").write_bytes(gzip.compress(tar_bytes(list(contents.items())), 1))
    for name in ("a.zip", "a.tgz"):
        with open_sources([str(tmp_path / name)]) as opened, ThreadPoolExecutor(8) as pool:
            items = list(opened)
            for _ in range(3):
                assert list(pool.map(outcome, items)) == list(contents.values())


def test_archives_are_closed_at_the_end(tmp_path: Path) -> None:
    for i in range(50):
        write_zip(tmp_path / f"{i}.zip", {"x.jpg": b"x"})
    (tmp_path / "list").write_text("\n".join(f"{tmp_path}/{i}.zip" for i in range(50)))

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_sources([f"@{tmp_path}/list"]) as opened:
            for item in opened:
                assert item.read() == b"x"
                assert open_files() < before + 10  # not all open at once
            items = list(opened)
        assert open_files() == before
    with pytest.raises(ImageError):
        items[0].read()


def test_shards_of_a_tar_are_disjoint_and_complete(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([(f"{i}.jpg", bytes([i])) for i in range(7)]))
    parts = []
    for i in range(1, 4):
        with open_sources([str(tmp_path / "a.tar")], shard=Shard(i, 3)) as opened:
            parts.append([item.read()[0] for item in opened])
    assert parts == [[0, 3, 6], [1, 4], [2, 5]]


def test_links_and_devices_in_an_archive_fail(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        info = zipfile.ZipInfo("link.jpg")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    found = outcomes(str(tmp_path / "a.tar"), str(tmp_path / "a.zip"))
    assert list(found.values()) == [ErrorCode.UNREADABLE] * 6


def test_encrypted_and_strangely_packed_members_of_a_zip_fail(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {"a.jpg": b"1", "b.jpg": b"2", "c.jpg": b"3"})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    entries = [i for i in range(len(data)) if data[i : i + 4] == b"PK\1\2"]
    data[entries[0] + 8] |= 1  # encrypted
    struct.pack_into("<H", data, entries[1] + 10, 97)  # WavPack
    (tmp_path / "a.zip").write_bytes(data)
    found = outcomes(str(tmp_path / "a.zip"))
    assert list(found.values()) == [ErrorCode.UNREADABLE, ErrorCode.UNREADABLE, b"3"]


def test_bombs_in_archives_are_too_large_or_cut_at_the_size_said(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {"a.jpg": bytes(1 << 20), "b.jpg": b"2"}, compression=zipfile.ZIP_DEFLATED)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    entry = data.index(b"PK\1\2")
    for size, code in [(MAX_FILE_BYTES + 1, ErrorCode.TOO_LARGE), (1000, ErrorCode.CORRUPT)]:
        struct.pack_into("<I", data, entry + 24, size)
        (tmp_path / "b.zip").write_bytes(data)
        assert list(outcomes(str(tmp_path / "b.zip")).values()) == [code, b"2"]
    info = tarfile.TarInfo("a.jpg")
    info.size = MAX_FILE_BYTES + 1
    (tmp_path / "c.tar").write_bytes(info.tobuf())
    with (tmp_path / "c.tar").open("r+b") as file:  # sparse: the member's data is a hole
        file.truncate(512 + info.size + 511)
        file.seek(0, os.SEEK_END)
        file.write(tar_bytes([("b.jpg", b"2")]))
    assert list(outcomes(str(tmp_path / "c.tar")).values()) == [ErrorCode.TOO_LARGE, b"2"]


def test_headers_of_a_tar_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 8 << 30
    (tmp_path / "a.tar").write_bytes(tar_bytes([("a.jpg", b"1")])[:1024] + info.tobuf() + bytes(4096))
    tracemalloc.start()
    found = list(outcomes(str(tmp_path / "a.tar")).values())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [b"1", ErrorCode.CORRUPT]
    assert peak < 10_000_000


def test_negative_sizes_in_a_tar_do_not_lead_backwards(tmp_path: Path) -> None:
    whole = bytearray(tar_bytes([("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"3")]))
    header = tarfile.TarInfo("b.jpg").tobuf(tarfile.GNU_FORMAT)
    negative = bytearray(header)
    negative[124:136] = b"\xff" * 10 + (2**16 - 1536).to_bytes(2, "big")
    negative[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(negative))[0]
    whole[1024:1536] = negative
    (tmp_path / "a.tar").write_bytes(whole)
    found = list(outcomes(str(tmp_path / "a.tar")).values())
    assert found[0] == b"1"
    assert found[-1] is ErrorCode.CORRUPT
    assert len(found) <= 3


@pytest.mark.parametrize("ending", PACKINGS)
def test_truncated_tar_gives_what_is_there_and_says_so(ending: str, tmp_path: Path) -> None:
    random_bytes = random.Random(0).randbytes
    members = [(f"{i}.jpg", random_bytes(20_000)) for i in range(5)]
    data = PACKINGS[ending](tar_bytes(members))
    path = tmp_path / f"a{ending}"
    for length in (len(data) // 2, len(data) * 9 // 10, 20_992, 20_992 + 512):
        path.write_bytes(data[:length])
        try:
            found = outcomes(str(path))
        except UserError as error:  # bzip2 gives nothing before its block is whole
            assert "the archive ends early" in error.message
            continue
        good = [value for value in found.values() if isinstance(value, bytes)]
        assert good == [data for _, data in members[: len(good)]]
        assert list(found.values())[-1] is ErrorCode.TRUNCATED
        assert len(found) <= len(good) + 2


def test_damaged_header_in_a_tar_is_not_taken_for_its_end(tmp_path: Path) -> None:
    data = bytearray(tar_bytes([("a.jpg", b"1"), ("b.jpg", b"2")]))
    data[1024 + 10] ^= 0xFF
    (tmp_path / "a.tar").write_bytes(data)
    assert list(outcomes(str(tmp_path / "a.tar")).values()) == [b"1", ErrorCode.CORRUPT]


def test_truncated_zip_is_refused_and_damaged_members_fail(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {"a.jpg": b"1" * 100, "b.jpg": b"2" * 100, "c.jpg": b"3"})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    (tmp_path / "cut.zip").write_bytes(data[:-30])
    assert "cut.zip (the archive ends early)" in problem(str(tmp_path / "cut.zip"))
    data[data.index(b"1111")] = 0
    second = data.index(b"PK\3\4", 10)
    data[second : second + 4] = b"oops"
    (tmp_path / "a.zip").write_bytes(data)
    assert list(outcomes(str(tmp_path / "a.zip")).values()) == [ErrorCode.CORRUPT, ErrorCode.CORRUPT, b"3"]


# What is left out


MIXED = [
    "a.jpg",
    "IMG_1.CR2",
    "IMG_1.cr2.txt",
    "README",
    "ends.with.a.dot.",
    "inner.tar.gz",
    "inner.zip",
    "sub/img_2.cr2",
    "sub/b.PNG",
    "sub/deep/LICENSE",
    "sub/.DS_Store",
    ".hidden.cr2",
    ".hidden/img_3.cr2",
    "__MACOSX/._a.cr2",
]


def left_out(*sources: str | Path, **options: object) -> dict[str, int]:
    with open_sources(list(map(os.fspath, sources)), **options) as opened:
        for _ in opened:
            pass
        return dict(opened.other_endings)


@pytest.fixture
def mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in [*MIXED, "empty.folder/", "sub/deep/empty/"]:
        path = tmp_path / "mixed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    (tmp_path / "mixed/dangling.mov").symlink_to("nowhere")
    return tmp_path / "mixed"


@pytest.mark.parametrize("packing", ["folder", "zip", *PACKINGS])
def test_the_same_is_left_out_of_a_folder_and_of_an_archive_of_it(packing: str, mixed: Path) -> None:
    name = "mixed"
    if packing == "zip":
        name = shutil.make_archive("mixed", "zip", "mixed")
        with zipfile.ZipFile(name, "a") as file:  # make_archive passes over it
            file.writestr("dangling.mov", "nowhere")
    elif packing != "folder":
        with tarfile.open(name := f"mixed{packing}", f"w:{packing[5:]}") as file:
            file.add("mixed", ".")
    assert left_out(name) == {".cr2": 2, ".txt": 1, "": 2, ".": 1, ".gz": 1, ".zip": 1, ".mov": 1}


def test_what_was_left_out_is_of_the_last_iteration_alone(mixed: Path) -> None:
    with open_sources(["mixed"]) as opened:
        assert opened.other_endings.total() == 0
        for _ in range(2):
            assert len(list(opened)) == 2
            assert opened.other_endings[".cr2"] == 2
        assert opened.count() == 2


def test_a_file_that_is_read_because_it_was_named_is_not_left_out(mixed: Path) -> None:
    write_zip(mixed / "inner.zip", {"x.jpg": b"x", "y.mov": b"y"})
    named = ["mixed/sub/img_2.cr2", "mixed/inner.zip", "mixed/.hidden.cr2"]
    expected = {".cr2": 1, ".txt": 1, "": 2, ".": 1, ".gz": 1, ".mov": 2}
    assert left_out("mixed", *named, *named) == left_out(*named, "mixed", "mixed/sub") == expected


def test_results_are_not_left_out(mixed: Path) -> None:
    before = left_out("mixed")
    for name in ("out.jsonl", "out.jsonl.partial", "out.jsonl.partial.run.json"):
        (mixed / name).touch()
    assert sum(left_out("mixed").values()) == sum(before.values()) + 3
    assert left_out("mixed", exclude=["mixed/out.jsonl"]) == before
    (mixed / "sub" / "out.jsonl").touch()
    (mixed / "out.jsonl2").touch()
    assert left_out("mixed", exclude=["mixed/out.jsonl"]) == {**before, ".jsonl": 1, ".jsonl2": 1}


def test_extensions_of_a_stranger_take_little_memory_and_are_all_counted(tmp_path: Path) -> None:
    long = [(f"{i}.{'x' * 30_000}{i}", b"") for i in range(50)]
    odd = [("a.\x1b[2J", b""), ("b.line\nend", b""), ("c.\u202e", b"")]
    many = [(f"{i}.e{i}", b"") for i in range(1000)]
    write_zip(tmp_path / "a.zip", {"a.jpg": b"", **dict(long), **dict(odd), **dict(many)})
    (tmp_path / "a.tar").write_bytes(tar_bytes([("a.jpg", b""), *long, *odd, *many]))
    for name in ("a.zip", "a.tar"):
        counts = left_out(tmp_path / name)
        assert sum(counts.values()) == 1053
        assert len(counts) <= 101
        assert all(len(extension) <= 16 and extension.isprintable() for extension in counts)


def test_the_words_about_what_was_left_out_add_up() -> None:
    files = LeftOut()
    for extension, n in ((".cr2", 9), ("", 5), (".mov", 4), (".txt", 3), (".pdf", 2), (".a", 1), (".b", 1)):
        for _ in range(n):
            files.add(f"x{extension}")
    files.add("x.much-too-long-to-be-a-name")
    assert describe_left_out(files.counts, "photos/") == (
        "26 files in photos/ left out for not having an image's extension: "
        "9 .cr2, 5 without extension, 4 .mov, 3 .txt, 2 .pdf, 3 others"
    )
    equal = LeftOut()
    for name in ("x", "b.b", "a.a", "c.a", "c.b", "y"):
        equal.add(name)
    assert describe_left_out(equal.counts).endswith(": 2 .a, 2 .b, 2 without extension")
    only = LeftOut()
    only.add("X.TXT")
    assert describe_left_out(only.counts) == "1 file left out for not having an image's extension: 1 .txt"


def test_what_is_found_in_no_archive_and_no_folder_has_a_hint_of_what_would_be(tmp_path: Path) -> None:
    write_zip(tmp_path / "phone.zip", {"IMG_1.CR2": b"x"})
    with pytest.raises(UserError, match="no image in it") as caught:
        open_sources([str(tmp_path / "phone.zip")])
    assert "inside folders and archives" in (caught.value.hint or "")


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(["zip", *PACKINGS]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=5),
    cut=st.floats(0, 1) | st.none(),
)
def test_mutations_of_archives_are_items_or_a_user_error(
    kind: str, changes: list[tuple[float, bytes]], cut: float | None
) -> None:
    with tempfile.TemporaryDirectory() as root:
        path = Path(root, "a.zip" if kind == "zip" else f"a{kind}")
        if kind == "zip":
            write_zip(path, MEMBERS, compression=zipfile.ZIP_DEFLATED)
        else:
            path.write_bytes(tar_bytes([(f"{name}.jpg", data) for name, data in MEMBERS.items()]))
        data = bytearray(path.read_bytes())
        for where, new in changes:
            start = int(where * len(data))
            data[start : start + len(new)] = new
        if cut is not None:
            del data[int(cut * len(data)) :]
        path.write_bytes(data if kind == "zip" else PACKINGS[kind](bytes(data)))
        try:
            found = outcomes(str(path))
        except UserError as error:
            assert "\n" not in error.message
        else:
            assert all(name == str(path) or name.startswith(f"{path}/") for name in found)
