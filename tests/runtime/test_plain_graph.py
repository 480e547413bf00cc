"""``infer --plain``: a forward classifier's file, without a defence."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from sad_runtime.bare_graph import BareOptions
from sad_runtime.classifier import Classifier
from sad_runtime.errors import BundleError, UserError
from sad_runtime.plain_graph import bundle_of_classifier
from sad_runtime.prediction import softmax
from tests.support.command_line import exit_code
from tests.support.graphs import classifier, make, run

IMAGES = np.random.default_rng(0).random((5, 3, 12, 12), dtype=np.float32)
SPACE = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


@pytest.fixture
def forward(tmp_path: Path) -> Path:
    path = tmp_path / "forward.onnx"
    onnx.save(classifier(), path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(IMAGES):
        pixels = Image.fromarray((255 * image.transpose(1, 2, 0)).astype(np.uint8))
        pixels.save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
@pytest.mark.parametrize("space", [{}, SPACE])
def test_its_logits_are_the_files(forward: Path, backend: str, space: dict[str, Any]) -> None:
    options = BareOptions(**space)
    x = IMAGES
    if space:
        mean, std = (np.reshape(space[name], (1, 3, 1, 1)) for name in ("mean", "std"))
        x = ((IMAGES - mean) / std).astype(np.float32)
    with Classifier.load(bundle_of_classifier(forward, options), backend=backend) as plain:
        found = plain.predict(IMAGES)
        np.testing.assert_allclose(found.logits, run(forward, x)[0], rtol=1e-4, atol=1e-5)
        assert found.plain_logits is None
        assert "without a defence" in plain.backend_reason
        assert "no defence" in repr(plain)
        with pytest.raises(BundleError, match="has no output saliency"):
            plain.predict(IMAGES, outputs=("saliency",))


def softmaxed(path: Path) -> Path:
    def change(nodes: list[onnx.NodeProto], _: dict[str, Any]) -> None:
        nodes[-1].output[:] = ["z"]
        nodes.append(make("Softmax", ["z"], ["y"], axis=1))

    onnx.save(classifier(change), path)
    return path


def test_probabilities_stay_what_they_are(tmp_path: Path) -> None:
    """Their softmax would be another distribution."""
    path, said = softmaxed(tmp_path / "p.onnx"), []
    with Classifier.load(
        bundle_of_classifier(path, BareOptions(), notice=said.append), backend="cpu"
    ) as plain:
        found = softmax(plain.predict(IMAGES).logits)
    np.testing.assert_allclose(found, run(path, IMAGES)[0], rtol=1e-5)
    assert any("gives probabilities" in line for line in said)


def rows_of(monkeypatch: pytest.MonkeyPatch, *words: object) -> list[dict[str, Any]]:
    out = Path(str(words[words.index("--out") + 1]))
    assert exit_code(monkeypatch, "infer", *map(str, words)) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_rows_have_its_answer_and_no_word_of_a_defence(
    forward: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\nelk\n")
    rows = rows_of(
        monkeypatch, forward, "--plain", photos, "--classes", names, "--out", tmp_path / "rows.jsonl"
    )
    assert [set(row) for row in rows] == [
        {"path", "size", "mtime_ns", "label", "class", "probability", "top_k"}
    ] * 5
    pixels = np.stack([np.asarray(Image.open(photos / f"{i}.png"), dtype=np.float32) for i in range(5)]) / 255
    logits = run(forward, pixels.transpose(0, 3, 1, 2).copy())[0]
    assert [row["label"] for row in rows] == logits.argmax(1).tolist()
    np.testing.assert_allclose([row["probability"] for row in rows], softmax(logits).max(1), rtol=1e-4)
    assert rows[0]["class"] == ["ant", "bee", "cat", "dog", "elk"][rows[0]["label"]]
    assert "gets pixels in [0, 1]: give --mean and --std" in capfd.readouterr().err


def test_its_report_shows_the_images_alone(
    forward: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, out = tmp_path / "report.html", tmp_path / "rows.jsonl"
    rows_of(monkeypatch, forward, "--plain", photos, "--report", page, "--out", out)
    text = page.read_text(encoding="utf-8")
    assert "none: a plain classifier" in text
    assert 'data-captions="[&quot;image&quot;]"' in text
    assert "its saliency" not in text
    assert "Hybridization" not in text
    pictures = json.loads(re.search(r'id="pictures">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    sizes = {Image.open(io.BytesIO(base64.b64decode(each))).size for each in pictures}
    assert (len(pictures), sizes) == (5, {(12, 12)})


def test_classes_are_those_that_the_exporter_wrote(
    forward: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(forward)
    onnx.helper.set_model_props(model, {"names": "{0: 'ant', 1: 'bee', 2: 'cat', 3: 'dog', 4: 'elk'}"})
    onnx.save(model, tmp_path / "named.onnx")
    rows = rows_of(monkeypatch, tmp_path / "named.onnx", "--plain", photos, "--out", tmp_path / "rows.jsonl")
    assert all(row["class"] == ["ant", "bee", "cat", "dog", "elk"][row["label"]] for row in rows)


def test_a_table_has_no_plain_columns(
    forward: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rows.csv"
    assert exit_code(monkeypatch, "infer", str(forward), "--plain", str(photos), "--out", str(out)) == 0
    header = out.read_text().splitlines()[0]
    assert "label" in header.split(",")
    assert "plain" not in header
    assert "saliency" not in header


def test_mean_and_std_are_part_of_what_resume_compares(
    forward: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = ["infer", str(forward), "--plain", str(photos), "--out", str(tmp_path / "rows.jsonl")]
    assert exit_code(monkeypatch, *words) == 0
    assert exit_code(monkeypatch, *words, "--mean", ".5,.5,.5", "--std", ".2,.2,.2", "--resume") != 0
    assert "another bundle" in capfd.readouterr().err


def test_what_a_gradient_graph_says_of_its_images_is_taken(forward: Path, tmp_path: Path) -> None:
    from sad_export import write_gradient

    options = BareOptions(resize=16, **SPACE)  # type: ignore[arg-type]
    write_gradient(forward, tmp_path / "g.onnx", bare=options, notice=lambda line: None)
    bundle = bundle_of_classifier(tmp_path / "g.onnx", BareOptions())
    assert (bundle.manifest.preprocessing.resize, bundle.manifest.preprocessing.crop) == (16, (12, 12))
    assert bundle.manifest.input_space.std == (1.0, 1.0, 1.0)  # they are inside
    with Classifier.load(bundle, backend="cpu") as plain:
        mean, std = (np.reshape(SPACE[name], (1, 3, 1, 1)) for name in ("mean", "std"))
        x = ((IMAGES - mean) / std).astype(np.float32)
        np.testing.assert_allclose(plain.predict(IMAGES).logits, run(forward, x)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="has its mean and std inside"):
        bundle_of_classifier(tmp_path / "g.onnx", BareOptions(**SPACE))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{forward} --plain {photos} --saliency-stats", "--plain runs a classifier without saliency"),
        ("{forward} --plain {photos} --saliency maps", "--plain runs a classifier without saliency"),
        ("{forward} --plain {photos} --mean 1,2,3", "--mean and --std come together"),
        ("{forward} --plain {photos} --mean 1,2 --std 1,2", "need 3 numbers each"),
        ("{photos} --plain", "--plain runs a classifier's ONNX file, and sad-model is none"),
        ("{forward} {photos} ", "so it is no two-pass graph"),
        ("missing.onnx --plain {photos}", "no graph at missing.onnx"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    forward: Path,
    photos: Path,
    words: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(monkeypatch, "infer", *words.format(forward=forward, photos=photos).split()) != 0
    err = capfd.readouterr().err
    assert "error: " in err
    assert message in err
    assert not (tmp_path / "predictions.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": (1, 3, 12, 12)}, "the batch of .* is fixed to 1"),
        ({"image": ("N", 3, "H", "W")}, r"not one float32 image \(N, C, H, W\) of one size"),
        ({"image": ("N", 5, 12, 12)}, "images are read with 1, 3 or 4 channels"),
    ],
)
def test_a_graph_that_takes_no_images_so_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    def channels(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> None:
        if change["image"][1] == 5:
            constants["w"] = np.zeros((8, 5, 3, 3), np.float32)

    onnx.save(classifier(channels, **change), tmp_path / "f.onnx")
    with pytest.raises(UserError, match=message):
        bundle_of_classifier(tmp_path / "f.onnx", BareOptions())


@pytest.mark.parametrize("says_so", [True, False])
def test_a_defended_graph_is_not_plain(tmp_path: Path, says_so: bool) -> None:
    from sad_export import two_pass

    graph = two_pass(classifier(), eta=0.05)
    if not says_so:
        del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "sad.onnx")
    with pytest.raises(UserError, match="has a defence") as caught:
        bundle_of_classifier(tmp_path / "sad.onnx", BareOptions())
    assert "plain_label" in str(caught.value.hint)
