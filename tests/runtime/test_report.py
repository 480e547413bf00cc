from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sad_runtime.classifier import Classifier
from sad_runtime.defended import defended_image
from sad_runtime.errors import ErrorCode, UserError
from sad_runtime.manifest import Defence, Manifest
from sad_runtime.overlay import overlay, picture
from sad_runtime.report import Report
from sad_runtime.report.listing import Listing
from sad_runtime.report.page import GENERATOR
from sad_runtime.report.pictures import strip
from sad_runtime.report.summary import bars_of_classes
from sad_runtime.report.tally import tally
from sad_runtime.report.text import in_script, visible
from sad_runtime.results import Failure, PlainPass, Ranked, Row
from tests.support.tiny_bundle import linear_model, manifest_of

HOSTILE = [
    "<img src=x onerror=alert(1)>.png",
    "\"'><script>alert(2)</script>.png",
    "</script><script>alert(3)</script>",
    "<!--.png",
    "photo\u202egpj.exe",
    "new\nline\r\t\x00\x1b[31m.png",
    "caf\udce9.png",
    "half a pair \ud83d.png",
    "line\u2028paragraph\u2029.png",
    "{{style}} {{rows}}.png",
    "&lt;b&gt;.png",
]


class Page(HTMLParser):
    """A page's elements, and the text of its ``script`` and ``style`` elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: dict[str, str] = {}
        self.words: list[str] = []
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = dict(attrs).get("id") or tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.blocks[self._open] = self.blocks.get(self._open, "") + data
        else:
            self.words.append(data)

    @property
    def rows(self) -> dict[str, Any]:
        return dict(json.loads(self.blocks["rows"]))

    @property
    def pictures(self) -> list[bytes]:
        return [base64.b64decode(text) for text in json.loads(self.blocks["pictures"])]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture
def manifest() -> Manifest:
    return manifest_of(linear_model())


def good_row(path: str, label: int = 0, probability: float = 0.9, **more: Any) -> dict[str, Any]:
    others = [{"label": k, "class": f"class {k}", "probability": 0.01} for k in range(4) if k != label]
    first = {"label": label, "class": f"class {label}", "probability": probability}
    if "plain_label" in more:
        more["plain_class"] = f"class {more['plain_label']}"
    return {"path": path, **first, "top_k": [first, *others], **more}


def predicted(path: str, label: int, *, plain: int | None = None) -> Row:
    first = PlainPass(plain, f"class {plain}") if plain is not None else None
    return Row(path, (Ranked(label, f"class {label}", 0.5),), plain=first)


def bad_row(path: str, code: str = "corrupt", message: str = "cannot be decoded") -> dict[str, Any]:
    return {"path": path, "error": {"code": code, "message": message}}


def write_journal(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one_image(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((3, 8, 8), dtype=np.float32), rng.normal(size=(3, 8, 8)).astype(np.float32)


def finished(report: Report, rows: list[dict[str, Any]], **more: Any) -> Page:
    journal = write_journal(report.path.with_name("journal.jsonl"), rows)
    path = report.finish(journal, seconds=2.0, backend="cpu", **more)
    return Page(path.read_text(encoding="utf-8"))


def kept_names(page: Page) -> set[str]:
    rows = page.rows
    return {rows["folders"][rows["folder"][i]] + rows["name"][i] for i in rows["pictured"]}


def test_page_holds_every_row_of_the_journal(tmp_path: Path, manifest: Manifest) -> None:
    with Report(tmp_path / "report.html", manifest) as report:
        report.write("a/x.png", *one_image())
        page = finished(
            report,
            [
                good_row("a/x.png", 2, 0.87654, plain_label=1, plain_class="class 1"),
                good_row("a/b/y.png", 0, 1.0, plain_label=0, plain_class="class 0", frames=12),
                bad_row("z.png", "empty", "has no bytes"),
            ],
        )
    rows = page.rows
    assert [rows["folders"][f] + n for f, n in zip(rows["folder"], rows["name"], strict=True)] == [
        "a/x.png",
        "a/b/y.png",
        "z.png",
    ]
    assert rows["label"] == [2, 0, -1]
    assert rows["probability"] == [8765, 10000, -1]
    assert rows["plain"] == [1, 0, -1]
    assert rows["rest"][:6] == [0, 100, 1, 100, 3, 100]
    assert rows["failures"] == [[2, 0, "has no bytes"]]
    assert rows["codes"] == ["empty"]
    assert rows["frames"] == [[1, 12]]
    assert rows["pictured"] == [0]
    assert rows["classes"] == ["class 0", "class 1", "class 2", "class 3"]


def test_summary_needs_no_script(tmp_path: Path, manifest: Manifest) -> None:
    with Report(tmp_path / "report.html", manifest) as report:
        page = finished(
            report,
            [good_row("a", 1, 0.95, plain_label=2), good_row("b", 1, 0.31, plain_label=1), bad_row("c")],
        )
    for words in (
        "tests.linear",
        "images 3 ",
        "label other than in the recalibrated first pass 1 50 % of 2",
        "failed 1 1 kind of error",
        "images a second 1.5 3 in 2 s",
        "Backend cpu",
        "class 1 2 images",
        "90–100 % 1 image",
        "30–40 % 1 image",
        "corrupt 1 c cannot be decoded",
        "No pictures were kept",
    ):
        assert words in page.text, words


def test_rate_is_of_the_images_that_took_the_time(tmp_path: Path, manifest: Manifest) -> None:
    with Report(tmp_path / "report.html", manifest) as report:
        page = finished(report, [good_row(f"{i}") for i in range(10)], processed=4)
    assert "images a second 2 4 in 2 s" in page.text


def test_run_without_any_image_is_still_a_page(tmp_path: Path, manifest: Manifest) -> None:
    with Report(tmp_path / "report.html", manifest) as report:
        page = finished(report, [])
    assert "No image was classified" in page.text
    assert page.rows["name"] == []


def test_page_of_a_real_run_shows_what_the_graph_saw(tmp_path: Path, bundle_folder: Path) -> None:
    images = np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)
    with Classifier.load(bundle_folder) as classifier:
        saliency = classifier.predict(images, outputs=["saliency"]).saliency
        assert saliency is not None
        with Report(tmp_path / "report.html", classifier.manifest) as report:
            for i in range(3):
                report.write(f"{i}.png", images[i], saliency[i])
            page = finished(report, [good_row(f"{i}.png") for i in range(3)])
    for i, encoded in enumerate(page.pictures):
        pixels = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        parts = [
            picture(images[i]),
            overlay(images[i], saliency[i]),
            picture(defended_image(images[i], saliency[i], classifier.manifest)),
        ]
        np.testing.assert_array_equal(pixels, np.hstack([np.asarray(part) for part in parts]))


@pytest.mark.parametrize(
    ("shape", "tile"), [((3, 224, 224), (96, 96)), ((1, 64, 32), (64, 32)), ((3, 100, 400), (24, 96))]
)
def test_pictures_are_small(shape: tuple[int, int, int], tile: tuple[int, int]) -> None:
    manifest = manifest_of(linear_model((shape[0], 8, 8)))
    rng = np.random.default_rng(0)
    image = np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    encoded = strip(image, rng.normal(size=shape).astype(np.float32), manifest)
    with Image.open(io.BytesIO(encoded)) as shown:
        assert shown.size == (3 * tile[1], tile[0])
    assert len(encoded) < 10_000


def test_hostile_names_are_text_and_nothing_else(tmp_path: Path, manifest: Manifest) -> None:
    hostile = dataclasses.replace(manifest, classes=tuple(HOSTILE[i] for i in range(4)))
    harmless = dataclasses.replace(manifest, classes=("a", "b", "c", "d"))
    pages = []
    for names, described in ((HOSTILE, hostile), ([f"{i}" for i in range(len(HOSTILE))], harmless)):
        rows = [good_row(name, i % 4) for i, name in enumerate(names)]
        rows += [bad_row(f"bad/{name}", "corrupt", name) for name in names]
        with Report(tmp_path / "report.html", described) as report:
            for name in names:
                report.write(name, *one_image())
            pages.append(finished(report, rows))
    attacked, calm = pages
    assert [(tag, sorted(given)) for tag, given in attacked.elements] == [
        (tag, sorted(given)) for tag, given in calm.elements
    ]
    assert len(attacked.rows["pictured"]) == len(HOSTILE)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2028\u2029]", source)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 猫 🐈‍⬛ مرحبا", "plain é 猫 🐈‍⬛ مرحبا"),
        ("a\nb\tc\x00", r"a\nb\tc\x00"),
        ("gpj\u202eexe", r"gpj\u202eexe"),
        ("caf\udce9", r"caf\xe9"),
        ("half \ud83d", r"half \ud83d"),
        ("a\u200bb\ufeff", r"a\u200bb\ufeff"),
    ],
)
def test_what_hides_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize("text", HOSTILE)
def test_json_in_a_script_can_neither_end_it_nor_change(text: str) -> None:
    written = in_script([text])
    assert not re.search("[<>&\u2028\u2029\ud800-\udfff]", written)
    assert json.loads(written) == [text]


def test_policy_lets_in_this_style_and_script_and_nothing_from_elsewhere(
    tmp_path: Path, manifest: Manifest
) -> None:
    with Report(tmp_path / "report.html", manifest) as report:
        page = finished(report, [good_row("a")])
    policy = next(given["content"] for tag, given in page.elements if "http-equiv" in given)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    for block, directive in (("style", "style-src"), ("script", "script-src")):
        digest = base64.b64encode(hashlib.sha256(page.blocks[block].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert not any({"src", "style", "onclick", "onload"} & set(given) for _, given in page.elements)
    assert {given.get("href") for _, given in page.elements} == {None, "#results"}
    assert "url(" not in page.blocks["style"]
    assert "@import" not in page.blocks["style"]
    assert "</" not in page.blocks["script"]


def test_the_same_pictures_are_kept_in_any_order(tmp_path: Path, manifest: Manifest) -> None:
    names = [f"images/{i}.png" for i in range(200)]
    kept = []
    for seed in range(3):
        shuffled = random.Random(seed).sample(names, len(names))
        with Report(tmp_path / f"{seed}.html", manifest, thumbnails=20) as report:
            for name in shuffled:
                report.write(name, *one_image(int(name[7:-4])))
            page = finished(report, [good_row(name) for name in names])
        assert len(page.pictures) == 20
        kept.append((kept_names(page), page.pictures))
    assert kept[0] == kept[1] == kept[2]


def test_pictures_that_are_not_kept_are_not_drawn(tmp_path: Path, manifest: Manifest) -> None:
    image = one_image()
    with Report(tmp_path / "report.html", manifest, thumbnails=20) as report:
        for i in range(1000):
            report.write(f"{i}.png", *image)
    # 20·(1 + ln(1000/20)) = 98 are expected
    assert (tmp_path / "report.html.pictures").stat().st_size < 150 * (24 + len(strip(*image, manifest)))


def test_which_pictures_are_kept_does_not_follow_the_names(tmp_path: Path, manifest: Manifest) -> None:
    names = [f"{i:04}.png" for i in range(1000)]
    with Report(tmp_path / "report.html", manifest, thumbnails=100) as report:
        for name in names:
            report.write(name, *one_image())
        page = finished(report, [good_row(name) for name in names])
    tenths = np.bincount([int(name[:4]) // 100 for name in kept_names(page)], minlength=10)
    assert tenths.min() >= 2
    assert tenths.max() <= 20


def test_many_threads_write_one_report(tmp_path: Path, manifest: Manifest) -> None:
    names = [f"{i}.png" for i in range(300)]
    with Report(tmp_path / "report.html", manifest, thumbnails=50) as report:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: report.write(name, *one_image(int(name[:-4]))), names))
        page = finished(report, [good_row(name) for name in names])
    assert len(page.pictures) == 50
    for name, encoded in zip(
        (page.rows["name"][i] for i in page.rows["pictured"]), page.pictures, strict=True
    ):
        assert encoded == strip(*one_image(int(name[:-4])), manifest)


def test_resumed_run_has_the_pictures_of_the_interrupted_one(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "report.html"
    with Report(path, manifest) as report:
        for i in range(5):
            report.write(f"{i}.png", *one_image(i))
    assert not path.exists()
    sidecar = tmp_path / "report.html.pictures"
    with Report(path, manifest) as report:
        report.write("5.png", *one_image(5))
        page = finished(report, [good_row(f"{i}.png") for i in range(6)])
    assert page.pictures == [strip(*one_image(i), manifest) for i in range(6)]
    assert not sidecar.exists()


@pytest.mark.parametrize("thumbnails", [3, 100])
def test_page_says_when_an_earlier_run_kept_no_pictures(
    tmp_path: Path, manifest: Manifest, thumbnails: int
) -> None:
    with Report(tmp_path / "report.html", manifest, thumbnails=thumbnails) as report:
        for i in range(10):
            report.write(f"new {i}", *one_image())
        page = finished(report, [good_row(f"{age} {i}") for age in ("old", "new") for i in range(10)])
    assert (
        f"{min(10, thumbnails)} of 20 classified images have pictures. Those of an earlier run" in page.text
    )
    assert "uniform sample" not in page.text


@pytest.mark.parametrize("cut", [1, 10, 23, 24, 25])
def test_torn_last_picture_is_dropped(tmp_path: Path, manifest: Manifest, cut: int) -> None:
    path, sidecar = tmp_path / "report.html", tmp_path / "report.html.pictures"
    with Report(path, manifest) as report:
        report.write("0.png", *one_image(0))
        report.write("1.png", *one_image(1))
    sidecar.write_bytes(sidecar.read_bytes()[:-cut])
    with Report(path, manifest) as report:
        report.write("2.png", *one_image(2))
        page = finished(report, [good_row(f"{i}.png") for i in range(3)])
    assert kept_names(page) == {"0.png", "2.png"}
    assert page.pictures == [strip(*one_image(i), manifest) for i in (0, 2)]


def test_damaged_picture_ends_what_is_believed(tmp_path: Path, manifest: Manifest) -> None:
    path, sidecar = tmp_path / "report.html", tmp_path / "report.html.pictures"
    with Report(path, manifest) as report:
        report.write("0.png", *one_image(0))
    whole = sidecar.stat().st_size
    with Report(path, manifest) as report:
        report.write("1.png", *one_image(1))
    data = bytearray(sidecar.read_bytes())
    data[whole + 30] ^= 1
    sidecar.write_bytes(data)
    with Report(path, manifest) as report:
        page = finished(report, [good_row("0.png"), good_row("1.png")])
    assert kept_names(page) == {"0.png"}


@pytest.mark.parametrize("other", ["fresh", "bundle", "garbage"])
def test_pictures_of_another_run_are_not_used(tmp_path: Path, manifest: Manifest, other: str) -> None:
    path = tmp_path / "report.html"
    with Report(path, manifest) as report:
        report.write("0.png", *one_image(0))
    if other == "garbage":
        (tmp_path / "report.html.pictures").write_bytes(b"something else")
    if other == "bundle":
        manifest = dataclasses.replace(manifest, defence=Defence(0.9))
    with Report(path, manifest, resume=other != "fresh") as report:
        page = finished(report, [good_row("0.png")])
    assert page.pictures == []


def test_changed_image_has_its_new_picture(tmp_path: Path, manifest: Manifest) -> None:
    with Report(tmp_path / "report.html", manifest, thumbnails=3) as report:
        for seed in range(4):
            report.write("0.png", *one_image(seed))
        page = finished(report, [good_row("0.png")])
    assert page.pictures == [strip(*one_image(3), manifest)]


def test_no_more_pictures_than_asked_for(tmp_path: Path, manifest: Manifest) -> None:
    with Report(tmp_path / "report.html", manifest, thumbnails=0) as report:
        report.write("0.png", *one_image())
        assert finished(report, [good_row("0.png")]).pictures == []


def test_beyond_its_limit_the_list_prefers_pictures_then_failures_then_changes() -> None:
    rows = [predicted(f"{i}", 0, plain=int(i % 5 == 0)) for i in range(100)]
    rows += [Row(f"bad {i}", error=Failure(ErrorCode.CORRUPT, "")) for i in range(10)]
    pictured = {"7", "50", "99"}
    counts = tally(rows, pictured)
    for limit, expected in [
        (2, {"7", "50"}),
        (8, pictured | {f"bad {i}" for i in range(5)}),
        (15, pictured | {f"bad {i}" for i in range(10)} | {"0", "5"}),
        (34, pictured | {f"bad {i}" for i in range(10)} | {f"{i}" for i in range(0, 100, 5)} | {"1", "2"}),
        (1000, {row.path for row in rows}),
    ]:
        text = io.StringIO()
        listing = Listing(rows, counts, pictured, limit=limit)
        listing.write(text, ["a", "b"])
        assert set(json.loads(text.getvalue())["name"]) == expected
        assert len(listing) == min(limit, 110)
    assert (counts.images, counts.failed, counts.changed) == (110, 10, 20)


def test_page_says_which_rows_it_does_not_list(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sad_runtime.report.report.LISTED_ROWS", 5)
    with Report(tmp_path / "report.html", manifest, thumbnails=2) as report:
        for i in range(20):
            report.write(f"{i}", *one_image())
        page = finished(report, [good_row(f"{i}") for i in range(20)])
    assert "2 of 20 classified images have pictures" in page.text
    assert "5 of 20 images are listed" in page.text
    assert "class 0 20 images" in page.text


def test_classes_of_the_same_name_stay_apart(tmp_path: Path, manifest: Manifest) -> None:
    same = dataclasses.replace(manifest, classes=("crane", "crane", "dog", "cat"))
    with Report(tmp_path / "report.html", same) as report:
        page = finished(report, [good_row("a", 0), good_row("b", 1)])
    assert page.rows["classes"] == ["crane (label 0)", "crane (label 1)", "dog", "cat"]


def test_ten_thousand_classes_keep_the_summary_short() -> None:
    classes = [f"class {k}" for k in range(10_000)]
    counts = tally((predicted(f"{k}", k) for k in range(10_000)), ())
    bars = bars_of_classes(counts, classes)
    assert bars.count("<button") == 500
    assert "and 9,500 classes more" in bars


def test_torn_last_line_of_the_journal_is_left_out(tmp_path: Path, manifest: Manifest) -> None:
    journal = write_journal(tmp_path / "journal.jsonl", [good_row("a"), good_row("b")])
    journal.write_bytes(journal.read_bytes()[:-5])
    with Report(tmp_path / "report.html", manifest) as report:
        page = Page(report.finish(journal, seconds=1, backend="cpu").read_text(encoding="utf-8"))
    assert page.rows["name"] == ["a"]


@pytest.mark.parametrize(
    "line", ["[]", "{", '{"path": 3}', '{"path": "a", "label": 4, "probability": 1}', '{"path": "a"}']
)
def test_journal_that_is_not_of_this_bundle_is_one_line(
    tmp_path: Path, manifest: Manifest, line: str
) -> None:
    journal = tmp_path / "journal.jsonl"
    journal.write_text(json.dumps(good_row("a")) + "\n" + line + "\n")
    with (
        Report(tmp_path / "report.html", manifest) as report,
        pytest.raises(UserError, match=r"line 2 of .* is not a result of this bundle"),
    ):
        report.finish(journal, seconds=1, backend="cpu")


def test_page_that_cannot_be_written_leaves_the_old_one_and_the_pictures(
    tmp_path: Path, manifest: Manifest
) -> None:
    path = tmp_path / "report.html"
    old = f"<!doctype html>{GENERATOR}old"
    path.write_text(old)
    with Report(path, manifest) as report:
        report.write("a", *one_image())
        with pytest.raises(UserError, match="cannot read"):
            report.finish(tmp_path / "missing.jsonl", seconds=1, backend="cpu")
    assert path.read_text() == old
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.html.pictures"]


def test_an_earlier_report_is_replaced_only_when_asked(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "report.html"
    (tmp_path / "rows.jsonl").touch()
    with Report(path, manifest) as report:
        report.finish(tmp_path / "rows.jsonl", seconds=1, backend="cpu")
    with pytest.raises(UserError, match=r"report.html is an earlier report"):
        Report(path, manifest, overwrite=False)
    with Report(path, manifest, overwrite=True) as report:
        report.finish(tmp_path / "rows.jsonl", seconds=1, backend="cpu")


def test_a_file_that_is_no_report_is_never_replaced(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "photo.png").write_bytes(b"pixels")
    with pytest.raises(UserError, match=r"photo.png is there already and is not a report"):
        Report(tmp_path / "photo.png", manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_report_that_cannot_be_begun_is_one_line(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*report\.html"):
        Report(tmp_path / "file" / "report.html", manifest)
    with pytest.raises(UserError, match="is a folder"):
        Report(tmp_path, manifest)
