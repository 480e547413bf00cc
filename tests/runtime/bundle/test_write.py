from __future__ import annotations

import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sad_runtime.bundle import Bundle, check_destination, write_bundle
from sad_runtime.errors import BundleError, UserError
from tests.support.tiny_bundle import LinearModel, linear_model, manifest_of, write_tiny_bundle

# A process that replaces the bundle in argv[1]; `{event}` runs while it does.
WRITER = """
import os, resource, signal, sys, time
from pathlib import Path
from sad_runtime.bundle import Bundle, write_bundle
from sad_runtime.errors import UserError

{event}
bundle = Bundle.open(sys.argv[1])
try:
    with write_bundle(sys.argv[1]) as draft:
        draft.manifest = bundle.manifest
        draft.keep(bundle, "model.onnx")
        with draft.path("weights.safetensors").open("wb") as file:
            for _ in range(64):
                file.write(bytes(1 << 16))
            file.flush()
        {during}
except UserError as error:
    print(error.message)
    sys.exit(2)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def neighbours(folder: Path) -> set[str]:
    return {path.name for path in folder.parent.iterdir()} - {folder.name}


def start_writer(folder: Path, *, event: str = "", during: str = "") -> subprocess.Popen[str]:
    code = WRITER.format(event=event, during=during)
    return subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def old(bundle_folder: Path) -> dict[str, bytes]:
    return contents(bundle_folder)


def test_clean_end_replaces_the_bundle_and_leaves_nothing_beside_it(
    bundle_folder: Path, old: dict[str, bytes]
) -> None:
    write_tiny_bundle(bundle_folder, linear_model(seed=1))
    assert contents(bundle_folder)["model.onnx"] != old["model.onnx"]
    Bundle.open(bundle_folder).verify()
    assert neighbours(bundle_folder) == set()


def test_bundle_is_as_readable_as_the_umask_says(bundle_folder: Path) -> None:
    ordinary = bundle_folder.parent / "ordinary"
    ordinary.mkdir()
    assert bundle_folder.stat().st_mode == ordinary.stat().st_mode


def test_absent_parents_are_made(tmp_path: Path, model: LinearModel) -> None:
    Bundle.open(write_tiny_bundle(tmp_path / "a" / "b" / "c", model)).verify()


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), SystemExit(1), UserError("no")])
def test_exception_in_the_body_leaves_the_old_bundle_whole(
    bundle_folder: Path, old: dict[str, bytes], error: BaseException
) -> None:
    with pytest.raises(type(error)), write_bundle(bundle_folder) as draft:
        draft.path("model.onnx").write_bytes(b"half")
        raise error
    assert contents(bundle_folder) == old
    assert neighbours(bundle_folder) == set()


def test_writing_into_a_kept_file_does_not_reach_the_old_bundle(
    bundle_folder: Path, old: dict[str, bytes]
) -> None:
    bundle = Bundle.open(bundle_folder)
    with pytest.raises(RuntimeError, match="stop"), write_bundle(bundle_folder) as draft:
        draft.keep(bundle, "model.onnx")
        assert (draft.root / "model.onnx").samefile(bundle_folder / "model.onnx")
        draft.path("model.onnx").write_bytes(b"new")
        raise RuntimeError("stop")
    assert contents(bundle_folder) == old


def test_kept_file_survives_the_old_bundle(bundle_folder: Path, old: dict[str, bytes]) -> None:
    bundle = Bundle.open(bundle_folder)
    with write_bundle(bundle_folder) as draft:
        draft.keep(bundle, "model.onnx", "weights.safetensors")
        draft.path("evaluation.json").write_text("{}")
        draft.manifest = bundle.manifest
    new = contents(bundle_folder)
    assert new["model.onnx"] == old["model.onnx"]
    assert set(Bundle.open(bundle_folder).manifest.files) == {
        "model.onnx",
        "weights.safetensors",
        "evaluation.json",
    }


def test_draft_has_a_file_only_with_the_contents_asked_for(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)
    digest = bundle.manifest.files["model.onnx"]
    with pytest.raises(RuntimeError, match="stop"), write_bundle(bundle_folder) as draft:
        assert not draft.has("model.onnx", digest)
        draft.keep(bundle, "model.onnx")
        assert draft.has("model.onnx", digest)
        assert not draft.has("model.onnx", "0" * 64)
        raise RuntimeError("stop")


def test_changed_file_is_not_kept(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)
    (bundle_folder / "model.onnx").write_bytes(b"changed")
    with pytest.raises(BundleError, match="was changed"), write_bundle(bundle_folder) as draft:
        draft.keep(bundle, "model.onnx")


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a\\b", "manifest.json"])
def test_draft_refuses_a_name_that_leaves_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="file name"), write_bundle(tmp_path / "b") as draft:
        draft.path(name)
    assert list(tmp_path.iterdir()) == []


def test_graph_that_was_not_written_is_refused(bundle_folder: Path, old: dict[str, bytes]) -> None:
    manifest = Bundle.open(bundle_folder).manifest
    with pytest.raises(BundleError, match=r"not written: model\.onnx"), write_bundle(bundle_folder) as draft:
        draft.manifest = manifest
    assert contents(bundle_folder) == old


def test_limit_on_file_size_is_one_line_and_loses_nothing(bundle_folder: Path, old: dict[str, bytes]) -> None:
    event = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
"""
    process = start_writer(bundle_folder, event=event)
    message, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert message.startswith("no room on the disk (File too large) while writing")
    assert message.count("\n") == 1
    assert contents(bundle_folder) == old
    assert neighbours(bundle_folder) == set()


def test_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, model: LinearModel) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip(f"needs to mount a small disk: {mount.stderr.strip()}")
    try:
        folder = write_tiny_bundle(disk / "sad-model", model)
        old = contents(folder)
        process = start_writer(folder)
        message, _ = process.communicate(timeout=60)
        assert process.returncode == 2
        assert message.startswith(f"no room on the disk ({os.strerror(errno.ENOSPC)}) while writing")
        assert contents(folder) == old
        assert neighbours(folder) == set()

        with pytest.raises(UserError, match="no room on the disk"), write_bundle(folder) as draft:
            # A writer with its own exceptions, as those of torch and safetensors are.
            try:
                draft.path("weights.safetensors").write_bytes(bytes(1 << 20))
            except OSError:
                raise RuntimeError("serialisation failed") from None
        assert contents(folder) == old
    finally:
        subprocess.run(["umount", disk], check=True)


def test_interrupt_while_writing_leaves_the_old_bundle_whole(
    bundle_folder: Path, old: dict[str, bytes]
) -> None:
    process = start_writer(bundle_folder, during='print("writing", flush=True); time.sleep(60)')
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert contents(bundle_folder) == old
    assert neighbours(bundle_folder) == set()


def test_leftover_of_a_killed_writer_is_removed_by_the_next(
    bundle_folder: Path, old: dict[str, bytes]
) -> None:
    process = start_writer(bundle_folder, during="os.kill(os.getpid(), signal.SIGKILL)")
    process.communicate(timeout=60)
    assert contents(bundle_folder) == old
    assert len(neighbours(bundle_folder)) == 1
    write_tiny_bundle(bundle_folder, linear_model(seed=1))
    assert neighbours(bundle_folder) == set()


def test_live_writer_is_left_alone_by_another(bundle_folder: Path) -> None:
    manifest = Bundle.open(bundle_folder).manifest
    with write_bundle(bundle_folder) as draft:
        weights = draft.path("weights.safetensors")
        weights.write_bytes(b"slow")
        write_tiny_bundle(bundle_folder, linear_model(seed=1))
        assert weights.read_bytes() == b"slow"
        draft.path("model.onnx").write_bytes(b"last")
        draft.manifest = manifest
    assert (bundle_folder / "model.onnx").read_bytes() == b"last"


# The second rename of the process is the one that puts the new bundle in place.
KILLED_BETWEEN_RENAMES = """
renames = []
def at_event(name, arguments):
    if name == "os.rename":
        renames.append(arguments)
        if len(renames) == 2:
            {action}
sys.addaudithook(at_event)
"""


def test_crash_between_the_renames_is_undone_by_the_next_open(
    bundle_folder: Path, old: dict[str, bytes]
) -> None:
    event = KILLED_BETWEEN_RENAMES.format(action="os.kill(os.getpid(), signal.SIGKILL)")
    process = start_writer(bundle_folder, event=event)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not bundle_folder.exists()
    assert ".sad-model.previous" in neighbours(bundle_folder)
    Bundle.open(bundle_folder).verify()
    assert contents(bundle_folder) == old


def test_crash_between_the_renames_is_undone_by_the_next_write(
    bundle_folder: Path, old: dict[str, bytes]
) -> None:
    event = KILLED_BETWEEN_RENAMES.format(action="os.kill(os.getpid(), signal.SIGKILL)")
    start_writer(bundle_folder, event=event).communicate(timeout=60)
    with pytest.raises(RuntimeError, match="stop"), write_bundle(bundle_folder):
        raise RuntimeError("stop")
    assert contents(bundle_folder) == old
    assert neighbours(bundle_folder) == set()


def test_failing_second_rename_puts_the_old_bundle_back(bundle_folder: Path, old: dict[str, bytes]) -> None:
    event = KILLED_BETWEEN_RENAMES.format(action='raise OSError(28, "No space left on device")')
    process = start_writer(bundle_folder, event=event)
    message, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert message.startswith("no room on the disk")
    assert contents(bundle_folder) == old
    assert neighbours(bundle_folder) == set()


def test_reader_beside_a_writer_always_finds_a_whole_bundle(bundle_folder: Path, model: LinearModel) -> None:
    code = """
import sys
from sad_runtime.bundle import Bundle, write_bundle
for _ in range(100):
    bundle = Bundle.open(sys.argv[1])
    with write_bundle(sys.argv[1]) as draft:
        draft.keep(bundle, *bundle.manifest.files)
        draft.manifest = bundle.manifest
"""
    process = subprocess.Popen([sys.executable, "-c", code, bundle_folder])
    opened = 0
    while process.poll() is None:
        assert Bundle.open(bundle_folder).manifest.model.name == "tests.linear"
        opened += 1
        time.sleep(0.001)
    assert process.returncode == 0
    assert opened > 10


def test_destination_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match="is a file"):
        check_destination(tmp_path / "file")


def test_folder_with_other_things_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web page", "icons": []}')
    with pytest.raises(BundleError, match="neither empty nor a bundle"), write_bundle(tmp_path):
        raise AssertionError("the body must not run")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_bundle_in_which_other_files_lie_is_not_replaced(bundle_folder: Path) -> None:
    (bundle_folder / "notes").mkdir()
    (bundle_folder / "notes" / "mine.txt").touch()
    (bundle_folder / ".DS_Store").touch()
    with pytest.raises(BundleError, match=re.escape("would be lost: notes/mine.txt")):
        check_destination(bundle_folder)


def test_compiled_kernels_beside_an_engine_keep_a_bundle_whole_and_replaceable(
    bundle_folder: Path, model: LinearModel
) -> None:
    with write_bundle(bundle_folder) as draft:
        draft.manifest = manifest_of(model)
        draft.path("weights.safetensors").write_bytes(b"weights")
        draft.path("engines/model.rtx.plan").write_bytes(b"an engine")
    cache = bundle_folder / "engines" / "model.rtx.cache"
    cache.write_bytes(b"kernels")
    Bundle.open(bundle_folder).verify()
    check_destination(bundle_folder)
    cache.rename(cache.with_name("another.rtx.cache"))
    with pytest.raises(BundleError, match="would be lost: engines/another"):
        check_destination(bundle_folder)


def test_damaged_and_newer_bundles_may_be_replaced(bundle_folder: Path) -> None:
    text = (bundle_folder / "manifest.json").read_text().replace('"schema": 1', '"schema": 99')
    (bundle_folder / "manifest.json").write_text(text)
    (bundle_folder / "model.onnx").unlink()
    check_destination(bundle_folder)


@pytest.mark.parametrize("name", ["absent", "empty", "deep/er/absent"])
def test_absent_or_empty_destination_is_accepted(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    check_destination(tmp_path / name)


def test_empty_folder_becomes_the_bundle(tmp_path: Path, model: LinearModel) -> None:
    (tmp_path / "empty").mkdir()
    Bundle.open(write_tiny_bundle(tmp_path / "empty", model)).verify()


def test_current_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path in (".", tmp_path):
        with pytest.raises(BundleError, match="is the current folder or holds it"):
            check_destination(path)


def test_link_to_a_bundle_stays_a_link(bundle_folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(bundle_folder)
    write_tiny_bundle(link, linear_model(seed=1))
    assert link.is_symlink()
    Bundle.open(bundle_folder).verify()


def test_manifest_must_be_set(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no manifest"), write_bundle(tmp_path / "b"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_manifest_of_the_draft_gets_its_files(tmp_path: Path, model: LinearModel) -> None:
    with write_bundle(tmp_path / "b") as draft:
        draft.path("a/b/c").write_bytes(b"deep")
        draft.manifest = manifest_of(model)
    digest = Bundle.open(tmp_path / "b").manifest.files["a/b/c"]
    assert digest == hashlib.sha256(b"deep").hexdigest()
