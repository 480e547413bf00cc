"""Runs that are killed, interrupted or run out of disk, and gone on with: every image once at the end."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sad_runtime.manifest import Engine
from tests.support.tiny_bundle import changed, linear_model, write_tiny_bundle

MAIN = [sys.executable, "-c", "from sad_deploy.cli import main; main()"]
COUNT = 1200
PARTIAL = Path("predictions.jsonl.partial")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a bundle and a folder of many images, three of them bad."""
    write_tiny_bundle(tmp_path / "sad-model", linear_model())
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "many"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / "00000.png")
    data = (folder / "00000.png").read_bytes()
    for i in range(1, COUNT):
        (folder / f"{i:05}.png").write_bytes(b"" if i % 500 == 7 else data)
    return tmp_path


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [*MAIN, "infer", "many", "--batch-size", "4", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def infer(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*MAIN, "infer", "many", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def written() -> int:
    """Bytes in the journal."""
    return PARTIAL.stat().st_size if PARTIAL.exists() else 0


def wait_for_rows(process: subprocess.Popen[str], beyond: int = 0) -> None:
    deadline = time.monotonic() + 60
    while written() <= beyond and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def rows(path: Path = Path("predictions.jsonl")) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_every_image_once() -> None:
    found = [row["path"] for row in rows()]
    assert sorted(found) == sorted(map(str, Path("many").iterdir()))
    assert Counter("error" in row for row in rows())[True] == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_finishes_its_batch_and_prints_the_command_that_goes_on(
    here: Path, number: signal.Signals
) -> None:
    process = start("--out", "predictions.jsonl", "--workers", "2")
    wait_for_rows(process)
    process.send_signal(number)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130
    kept = rows(PARTIAL)
    assert 0 < len(kept) < COUNT
    assert len(kept) % 4 == 0
    assert [row["path"] for row in kept] == [f"many/{i:05}.png" for i in range(len(kept))]
    assert f"interrupted after {len(kept)} images" in text
    assert "Traceback" not in text
    assert not Path("predictions.jsonl").exists()
    command = text.partition("resume with: sad-deploy ")[2].splitlines()[0]
    assert command == "infer --resume many --batch-size 4 --out predictions.jsonl --workers 2"
    again = subprocess.run([*MAIN, *shlex.split(command)], capture_output=True, text=True, check=False)
    assert again.returncode == 3
    assert f"{len(kept)} images had a row already" in again.stderr
    assert_every_image_once()
    assert not PARTIAL.exists()


def test_a_run_that_is_killed_again_and_again_has_every_image_once(here: Path) -> None:
    chance = random.Random()
    sizes = [0]
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        process = start("--resume")
        wait_for_rows(process, beyond=sizes[-1])
        time.sleep(chance.uniform(0, 0.02))
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode in (-number, 130)
        sizes.append(written())
    assert sizes == sorted(set(sizes))  # each run went on where the one before it was cut off
    assert infer("--resume").returncode == 3
    assert_every_image_once()
    assert sorted(path.name for path in here.glob("predictions*")) == [
        "predictions.jsonl",
        "predictions.jsonl.run.json",
    ]


def test_a_second_signal_ends_at_once(here: Path) -> None:
    # A pipe that nobody reads holds the run in the middle of writing its rows.
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*MAIN, "infer", "many", "--out", "-"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    os.set_blocking(reader, False)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if os.read(reader, 1):
                break
        except BlockingIOError:
            time.sleep(0.01)
    time.sleep(0.5)  # until the pipe is full
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    os.close(reader)


def test_repeating_the_plain_command_does_not_lose_an_unfinished_run(here: Path) -> None:
    process = start()
    wait_for_rows(process)
    process.kill()
    process.communicate()
    before = PARTIAL.read_bytes()
    again = infer()
    assert again.returncode == 2
    assert "predictions.jsonl.partial holds the rows of an unfinished run" in again.stderr
    assert "resume with: sad-deploy infer --resume many; or replace them with --overwrite" in again.stderr
    assert PARTIAL.read_bytes() == before
    assert infer("--overwrite").returncode == 3
    assert_every_image_once()


def test_a_grown_folder_is_added_to_and_changed_files_are_classified_anew(here: Path) -> None:
    assert infer().returncode == 3
    Path("many/new.png").write_bytes(Path("many/00001.png").read_bytes())
    Image.new("RGB", (30, 30), "red").save("many/00002.png")
    done = infer("--resume")
    assert done.returncode == 3  # the three bad ones are still bad
    assert "2 images in" in done.stderr
    assert f"{COUNT - 1} images had a row already" in done.stderr
    assert "3 images had failed before" in done.stderr
    assert_every_image_once()
    (changed,) = [row for row in rows() if row["path"] == "many/00002.png"]
    assert changed["size"] == Path("many/00002.png").stat().st_size


def test_errors_are_tried_again_only_when_asked(here: Path) -> None:
    assert infer().returncode == 3
    assert "0 images in" in infer("--resume").stderr
    done = infer("--resume", "--retry-errors")
    assert "3 images in" in done.stderr
    assert done.returncode == 3
    assert_every_image_once()


def test_other_options_and_another_bundle_are_refused_by_name(here: Path) -> None:
    assert infer().returncode == 3
    other = infer("--resume", "--top-k", "2", "--logits")
    assert other.returncode == 2
    assert "made with --top-k 5 (now --top-k 2), no --logits (now --logits)" in other.stderr
    write_tiny_bundle(here / "another", linear_model(seed=1))
    other = infer("--resume", "--bundle", "another")
    assert other.returncode == 2
    assert "made with another bundle" in other.stderr
    assert_every_image_once()


def test_a_bundle_that_was_exported_again_beside_its_graph_is_no_other_bundle(here: Path) -> None:
    """As by an engine that was built meanwhile: rows are what they were."""
    assert infer().returncode == 3
    engine = Engine("engines/a.plan", "engines/a.json", "model.onnx", "rtx", "fp32")
    with changed(Path("sad-model"), engines=(engine,), calibration={"figure": 1.0}) as draft:
        for name in (engine.file, engine.sidecar):
            draft.path(name).write_text("{}")
    again = infer("--resume")
    assert again.returncode == 3, again.stderr
    assert_every_image_once()


def test_pictures_and_the_report_of_an_interrupted_run_are_complete(here: Path) -> None:
    for path in sorted(Path("many").iterdir())[60:]:
        path.unlink()
    pictures = ("--saliency", "overlays", "--report", "page.html")
    process = start(*pictures)
    wait_for_rows(process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert infer("--resume", *pictures).returncode == 3
    good = [row for row in rows() if "error" not in row]
    assert len(good) == 59
    assert all(Path(row["saliency"]).exists() for row in good)
    # As large as a page of one run: the pictures drawn before the interruption are in it too.
    assert infer("--out", "whole.jsonl", "--report", "whole.html").returncode == 3
    assert Path("page.html").stat().st_size == pytest.approx(Path("whole.html").stat().st_size, rel=0.01)


def test_a_full_disk_is_one_line_and_can_be_gone_on_with(here: Path) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    command = [sys.executable, "-c", limited + MAIN[2], "infer", "many"]
    full = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert full.returncode == 2
    assert "Traceback" not in full.stderr
    assert "cannot write to" in full.stderr
    assert "resume with: sad-deploy infer --resume many" in full.stderr
    assert not Path("predictions.jsonl").exists()
    assert all("path" in row for row in rows(PARTIAL))
    assert infer("--resume").returncode == 3
    assert_every_image_once()


def test_waiting_for_standard_input_can_be_interrupted(here: Path) -> None:
    command = [*MAIN, "infer", "-"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("backend")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert "interrupted after 0 images" in process.stderr.read()
    assert process.stdin is not None
    process.stdin.close()
    assert not PARTIAL.exists()
