"""The resumable run as a library call."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sad_runtime.classifier import Classifier
from sad_runtime.errors import UserError
from sad_runtime.result_format import ResultFormat
from sad_runtime.results import EarlierRunError
from sad_runtime.run import JournaledRun, RunOptions, run
from sad_runtime.sources import Shard

COUNT = 12


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of images, one of them empty, and one file that is no image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(COUNT - 1):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    (folder / "empty.png").touch()
    (folder / "notes.txt").touch()
    return folder


def paths(out: Path) -> list[str]:
    return [json.loads(line)["path"] for line in out.read_text(encoding="utf-8").splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("out*"))


def test_a_run_is_one_row_per_image_and_counts_them(
    bundle_folder: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    summary = run(photos, bundle_folder, out)
    assert sorted(paths(out)) == sorted(map(str, photos.glob("*.png")))
    assert (summary.done, summary.classes.total()) == (COUNT, COUNT - 1)
    assert (summary.failures, summary.left_out) == (Counter(empty=1), Counter({".txt": 1}))
    assert (summary.skipped, summary.skipped_failures) == (None, 0)
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.run.json"]


def test_every_row_is_on_the_disk_when_a_caller_is_told_of_it(
    bundle_folder: Path, photos: Path, tmp_path: Path, synced: list[tuple[int, int]]
) -> None:
    out = tmp_path / "out.jsonl"
    batches = 0
    with JournaledRun(photos, bundle_folder, out, RunOptions(batch_size=4)) as journaled:
        for _ in journaled:
            batches += 1
            assert journaled.kept_in is not None
            journal = journaled.kept_in.stat()
            assert (journal.st_ino, journal.st_size) in synced
            assert len(paths(journaled.kept_in)) == journaled.summary.done == 4 * batches
    assert batches == COUNT // 4


def interrupted(photos: Path, bundle: Path, out: Path, options: RunOptions) -> int:
    """Rows that a run writes which ends in its second batch."""
    written = 0
    with pytest.raises(KeyboardInterrupt), JournaledRun(photos, bundle, out, options) as journaled:
        assert journaled.kept_in is None
        for rows in journaled:
            written += len(rows)
            if written > 4:
                assert journaled.kept_in == out.with_name(out.name + ".partial")
                raise KeyboardInterrupt
    return written


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_an_interrupted_run_is_resumed_and_has_every_image_once(
    bundle_folder: Path, photos: Path, tmp_path: Path, name: str
) -> None:
    out, whole = tmp_path / name, tmp_path / f"whole-{name}"
    assert interrupted(photos, bundle_folder, out, RunOptions(batch_size=4)) == 8
    assert not out.exists()
    with pytest.raises(EarlierRunError, match="unfinished run"):
        run(photos, bundle_folder, out)
    summary = run(photos, bundle_folder, out, RunOptions(resume=True))
    assert (summary.done, summary.skipped) == (COUNT - 8, 8)
    run(photos, bundle_folder, whole)
    assert out.read_text() == whole.read_text()
    assert names(tmp_path) == [name, f"{name}.run.json"]


def test_a_stopped_run_ends_after_its_batch_and_can_be_resumed(
    bundle_folder: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    with JournaledRun([photos], bundle_folder, out, RunOptions(batch_size=1)) as journaled:
        for _ in journaled:
            journaled.stop()
        stopped_after = journaled.summary.done
    assert 1 <= stopped_after < COUNT
    summary = run(photos, bundle_folder, out, RunOptions(resume=True, batch_size=1))
    assert summary.skipped == stopped_after
    assert len(paths(out)) == len(set(paths(out))) == COUNT


def test_resuming_with_other_options_is_refused_by_name(
    bundle_folder: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    interrupted(photos, bundle_folder, out, RunOptions(batch_size=4))
    with pytest.raises(UserError, match=r"--top-k 5 \(now --top-k 2\)"):
        run(photos, bundle_folder, out, RunOptions(resume=True, top_k=2))


def test_failures_are_tried_again_when_asked(bundle_folder: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(photos, bundle_folder, out)
    assert run(photos, bundle_folder, out, RunOptions(resume=True)).skipped_failures == 1
    summary = run(photos, bundle_folder, out, RunOptions(resume=True, retry_errors=True))
    assert (summary.done, summary.failures.total(), summary.skipped_failures) == (1, 1, 0)


def test_pictures_report_and_shard_are_options_too(bundle_folder: Path, photos: Path, tmp_path: Path) -> None:
    options = RunOptions(
        table=ResultFormat.CSV,
        saliency=tmp_path / "overlays",
        report=tmp_path / "page.html",
        shard=Shard(1, 2),
    )
    loaded: list[str] = []

    def note(classifier: Classifier) -> None:
        loaded.append(classifier.backend_name)
        assert not (tmp_path / "page.html").exists()

    with JournaledRun(photos, bundle_folder, tmp_path / "out", options, on_loaded=note) as journaled:
        assert sum(len(rows) for rows in journaled) == COUNT // 2
        journaled.finish()
    assert loaded == [journaled.classifier.backend_name]
    assert len(list((tmp_path / "overlays").iterdir())) == COUNT // 2
    assert "sad-deploy report" in (tmp_path / "page.html").read_text()
    assert (tmp_path / "out").read_text().startswith("path,label,class")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume": True, "overwrite": True}, "choose one"),
        ({"retry_errors": True}, "needs --resume"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_any_work(
    options: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        RunOptions(**options)  # type: ignore[arg-type]


def test_nothing_is_written_over_something_else(bundle_folder: Path, photos: Path, tmp_path: Path) -> None:
    options = RunOptions(report=tmp_path / "x")
    with pytest.raises(UserError, match="--out and --report are both"):
        run(photos, bundle_folder, tmp_path / "photos" / ".." / "x", options)
