"""The page of an evaluation: everything is on it, and nothing of it comes from outside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sad_deploy.evaluation import plan
from sad_deploy.evaluation.data import Labelled
from sad_deploy.evaluation.evaluate import Setting, evaluate
from sad_deploy.evaluation.oracles import Array, open_session
from sad_deploy.evaluation.plan import Effort
from sad_deploy.evaluation.report import PICTURES, write_report
from sad_deploy.evaluation.threat import Threat

from .conftest import Digits


def test_the_page_says_all_and_loads_nothing(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "EFFORTS", (Effort(10, 0, 0, 0),))
    threats = [Threat(0.05), Threat(0.1)]
    evaluation = evaluate(digits.subjects, digits.images, Setting(threats, processes=1), tmp_path)
    data = Labelled(digits.images, "<digits>", "test", "the first 48")

    def network(images: Array) -> tuple[Array, Array]:
        session = open_session(digits.bundle / "model.onnx")
        logits, saliency = session.run(["logits", "saliency"], {"image": images})
        return logits.argmax(1), saliency

    page = tmp_path / "page.html"
    names = [f"class <{i}>" for i in range(10)]
    write_report(page, evaluation, data, model="a <model>", classes=names, network=network)
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=.?(https?:|//)|<script|url[(](?!#)", text)
    assert "&lt;model&gt;" in text and "&lt;digits&gt;" in text and "class &lt;1&gt;" in text
    assert text.count("<polyline") == 1 + len(
        [row for row in evaluation.results[0].defended.rows if row.alone]
    )
    for result in evaluation.results:
        assert f"{result.defended.worst_case.percent:.1f} %" in text
        assert all(check.source.split(",")[0] in text for check in result.checks)
    counts = [int((each.defended.clean & ~each.defended.robust).sum()) for each in evaluation.results]
    fooled = sum(min(each, PICTURES) for each in counts)
    assert text.count("<figcaption>10 × difference") == fooled > 0
    assert text.count("taken for class &lt;") == 2 * fooled, "caption and alternative text"
    pictures = re.findall(r"<figure id='([^']+)'><a class=open href='#([^']+)'", text)
    assert len(pictures) == 5 * fooled == len(set(pictures)) and all(a == b for a, b in pictures)
    closing = re.findall(r"class=close href='#([^']+)'", text)
    assert len(closing) == len(pictures) and all(f"<div class=row id='{each}'>" in text for each in closing)
    assert "−0.05" in text and "|S| over the image" in text
