"""An evaluation as one HTML page: limits first, then the figures, the checks, and what the attacks made."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sad_runtime.files import written_whole
from sad_runtime.labelled import Share
from sad_runtime.overlay import brightest, color_map, overlay, picture
from sad_runtime.report.page import base_style
from sad_runtime.report.table import table
from sad_runtime.report.text import in_html

from .data import Labelled
from .evaluate import Evaluation, Result
from .oracles import Array
from .outcome import Outcome
from .plan import Stage
from .record import UPPER_BOUND

PICTURES = 24
"""Most images that are shown."""

_AMPLIFIED = 10
_LARGEST_SIDE = 224
_LOSSLESS_SIDE = 64
_CSS = Path(__file__).with_name("report.css")

Network = Callable[[Array], tuple[Array, Array | None]]
"""(N, C, H, W) → classes (N,), −1 for an answer that is not finite; and S of the first pass, shaped alike, or
None for a classifier without a defence."""


def write_report(
    path: Path,
    evaluation: Evaluation,
    data: Labelled,
    *,
    model: str,
    classes: Sequence[str],
    network: Network,
) -> None:
    """Write the page, whole or not at all; it needs nothing but itself.

    Args:
        path: Where.
        evaluation: What was found.
        data: On what.
        model: Its name.
        classes: Names in the order of the logits.
        network: Answers, for the pictures.

    Raises:
        UserError: It cannot be written.
    """
    parts = [_head(model), _limits(evaluation, data)]
    if len(evaluation.results) > 1:
        parts.append(_curve(evaluation.results))
    for n, result in enumerate(evaluation.results):
        parts += [
            *_result(result),
            _pictures(result.defended, data, classes, network, f"p{n}"),
            _per_class(result, data, classes),
        ]
    parts.append("</main></body></html>")
    with written_whole(path, option="--report") as draft:
        draft.write_text("\n".join(parts), encoding="utf-8")


def _head(model: str) -> str:
    style = base_style() + _CSS.read_text(encoding="utf-8")
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        "<meta name=color-scheme content='light dark'>"
        f"<title>Robustness of {in_html(model)}</title><style>{style}</style></head>"
        "<body><header><p class=kicker>sad-deploy evaluate</p>"
        f"<h1>Robustness of {in_html(model)}</h1></header><main>"
    )


def _limits(evaluation: Evaluation, data: Labelled) -> str:
    items = "".join(f"<li>{in_html(each)}</li>" for each in evaluation.left_out)
    left_out = f"<p>Left out:</p><ul>{items}</ul>" if items else ""
    where = f"{len(data.images)} {data.split} images of {data.source} ({data.selection})"
    return (
        f"<section><h2>What this says, and what not</h2><p>{UPPER_BOUND} Measured on {in_html(where)}, seed "
        f"{evaluation.seed}, {evaluation.seconds:.0f} s of CPU time. An image counts as robust if no attack "
        f"changed its class.</p>{left_out}</section>"
    )


def _result(result: Result) -> Iterator[str]:
    outcome, other, paired = result.defended, result.undefended, result.paired
    cells = [("worst case", _share(outcome.worst_case)), ("clean", _share(outcome.clean_accuracy))]
    if other is not None and paired is not None:
        sure = f"p = {paired.p:.2g}" if paired.is_significant else "not significant"
        cells.append(("undefended, attacked itself", _share(other.worst_case)))
        cells.append(("what the defence gained", f"{paired.points:+.1f} points, {sure}".replace("-", "−")))
    cells.append(("worst case of 8-bit files", _share(outcome.rounded_worst_case)))
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in cells)
    yield f"<section><h2>{in_html(str(outcome.threat))}</h2><dl class=figures>{listed}</dl>"
    yield table(
        ("attacker knows", "way", "attack", "alone", "worst so far"),
        [
            (
                row.stage.knows,
                row.stage.way,
                row.stage.name,
                "–" if row.alone is None else f"{row.alone.percent:.1f} %",
                f"{row.worst.percent:.1f} %",
            )
            for row in outcome.rows
        ],
    )
    if result.files:
        yield table(
            ("file", "attacked itself", "images made for the first file", "worst", "same labels"),
            [
                (
                    each.file,
                    "–" if each.direct is None else f"{each.direct.percent:.1f} %",
                    f"{each.replayed.percent:.1f} %",
                    f"{each.worst.percent:.1f} %",
                    f"{100 * each.agreement:.1f} %",
                )
                for each in result.files
            ],
        )
    marks = "".join(
        f"<li class={'good' if each.passed else 'bad'}><b>{'✓' if each.passed else '✗'}</b> "
        f"{in_html(each.words)} <cite>{in_html(each.source)}</cite></li>"
        for each in result.checks
    )
    yield f"<h3>Can the attacks be believed?</h3><ul class=checks>{marks}</ul></section>"


def _pictures(outcome: Outcome, data: Labelled, classes: Sequence[str], network: Network, prefix: str) -> str:
    """Clean, adversarial and what it is taken for, the difference amplified, and S before and after."""
    fooled = np.flatnonzero(outcome.clean & ~outcome.robust)[:PICTURES]
    if not len(fooled):
        return ""
    images, attacked = data.images.pixels[fooled], outcome.adversarial[fooled]
    (_, before), (answers, after) = network(images), network(attacked)
    rows = []
    for k, i in enumerate(fooled):
        stage = next(row.stage for row in outcome.rows if row.broken[i])
        distance = outcome.threat.distance(attacked[k : k + 1], images[k : k + 1])[0]
        difference = np.clip(0.5 + _AMPLIFIED * (attacked[k] - images[k]), 0, 1)
        label = in_html(classes[int(data.images.labels[i])])
        becomes = "no class (not finite)" if answers[k] < 0 else in_html(classes[int(answers[k])])
        shown = [(label, picture(images[k])), (f"taken for {becomes}", picture(attacked[k]))]
        shown.append((f"{_AMPLIFIED} × difference", picture(difference)))
        if before is not None and after is not None:
            for words, image, s in (("clean", images[k], before[k]), ("adversarial", attacked[k], after[k])):
                shown.append((f"S, {words}; bright: {brightest(s):.2g}", overlay(image, s)))
        name = in_html(str(data.names[i])) if data.names else f"image {i}"
        anchor = f"{prefix}-{k}"
        figures = "".join(
            _figure(f"{anchor}-{n}", anchor, caption, f"{caption}: {name}", image)
            for n, (caption, image) in enumerate(shown)
        )
        rows.append(
            f"<div class=row id='{anchor}'><p><b>{label}</b> → <b>{becomes}</b> {name} · "
            f"{in_html(stage.name)}, {in_html(stage.way)} · distance {distance:.4f}</p>"
            f"<div class=strip>{figures}</div></div>"
        )
    more = int((outcome.clean & ~outcome.robust).sum()) - len(fooled)
    rest = f"<p>and {more} more</p>" if more else ""
    scales = _scales(saliency=before is not None)
    return f"<section><h2>Adversarial images</h2>{scales}{''.join(rows)}{rest}</section>"


def _figure(anchor: str, back: str, caption: str, alt: str, image: Image.Image) -> str:
    """A picture that a click enlarges: it is then the target of the page's address; no script."""
    return (
        f"<figure id='{anchor}'><a class=open href='#{anchor}' title=enlarge>"
        f"<img src='{_inline(image)}' alt='{alt}'></a><figcaption>{caption} "
        f"<a class=close href='#{back}'>close</a></figcaption></figure>"
    )


def _scales(*, saliency: bool) -> str:
    """What the colours of the difference and of S mean."""
    end = f"{0.5 / _AMPLIFIED:g}"
    grey = [(0, 0, 0), (255, 255, 255)]
    scales = [_scale("d", grey, ("−" + end, "difference of a pixel, each channel", "+" + end))]
    if saliency:
        colors = [tuple(int(c) for c in rgb) for rgb in color_map()[:: len(color_map()) // 8]]
        scales.append(_scale("s", colors, ("0", "|S| over the image in grey", "bright")))
    return f"<div class=scales>{''.join(scales)}</div>"


def _scale(key: str, colors: Sequence[tuple[int, ...]], words: tuple[str, str, str]) -> str:
    stops = "".join(
        f"<stop offset={n / (len(colors) - 1):.3f} stop-color='rgb{rgb}'/>" for n, rgb in enumerate(colors)
    )
    gradient = f"<linearGradient id='{key}'>{stops}</linearGradient>"
    texts = "".join(f"<span>{each}</span>" for each in words)
    bar = f"<rect width=100% height=100% fill='url(#{key})'/>"
    return f"<div class=scale><svg aria-hidden=true>{gradient}{bar}</svg>{texts}</div>"


def _per_class(result: Result, data: Labelled, classes: Sequence[str]) -> str:
    outcome, labels = result.defended, data.images.labels
    rows = []
    for label in np.unique(labels):
        mine = labels == label
        count = int(mine.sum())
        rows.append(
            (
                classes[int(label)],
                str(count),
                f"{100 * outcome.clean[mine].mean():.0f} %",
                f"{100 * outcome.robust[mine].mean():.0f} %",
            )
        )
    listed = table(("class", "images", "clean", "worst case"), rows)
    return f"<section><h2>Per class</h2>{listed}</section>"


def _curve(results: Sequence[Result]) -> str:
    """Accuracy against ε, a line for each way: the gap between two is the masking."""
    ordered = sorted(results, key=lambda each: each.defended.threat.epsilon)
    epsilons = [0.0, *(each.defended.threat.epsilon for each in ordered)]
    clean = ordered[0].defended.clean_accuracy.percent
    worst = [clean, *(each.defended.worst_case.percent for each in ordered)]
    lines: dict[str, list[float]] = {"worst case": worst}
    for row in ordered[0].defended.rows:
        if row.alone is not None:
            found = [each.defended.alone(_goes_through(row.stage.way)) for each in ordered]
            lines[row.stage.way] = [clean, *(clean if value is None else value for value in found)]
    width, height, left, bottom = 560, 260, 44, 28
    largest = max(epsilons)

    def at(epsilon: float, percent: float) -> str:
        x = left + (width - left - 8) * epsilon / largest
        return f"{x:.1f},{8 + (height - bottom - 8) * (1 - percent / 100):.1f}"

    drawn = []
    for k, values in enumerate(lines.values()):
        points = " ".join(at(e, v) for e, v in zip(epsilons, values, strict=True))
        dots = "".join(
            f"<circle cx={at(e, v).replace(',', ' cy=')} r=3 />"
            for e, v in zip(epsilons, values, strict=True)
        )
        drawn.append(f"<g class=line{k % 6}><polyline points='{points}'/>{dots}</g>")
    grid = "".join(
        f"<text x=38 y={8 + (height - bottom - 8) * (1 - p / 100) + 4:.0f} class=end>{p} %</text>"
        for p in (0, 50, 100)
    )
    ticks = "".join(
        f"<text x={at(e, 0).split(',')[0]} y={height - 8} class=middle>{e:.3g}</text>" for e in epsilons
    )
    legend = "".join(f"<li class=line{k % 6}>{in_html(name)}</li>" for k, name in enumerate(lines))
    return (
        f"<section><h2>Accuracy against ε</h2><svg viewBox='0 0 {width} {height}' role=img "
        f"aria-label='accuracy against epsilon, a line for each way'>{grid}{ticks}{''.join(drawn)}</svg>"
        f"<ul class=lines>{legend}</ul></section>"
    )


def _goes_through(way: str) -> Callable[[Stage], bool]:
    return lambda stage: stage.way == way


def _share(value: Share) -> str:
    low, high = value.interval
    return f"{value.percent:.1f} % <small>({low:.1f} … {high:.1f})</small>"


def _inline(image: Image.Image) -> str:
    """A data address; the page enlarges pictures, large ones are made smaller."""
    largest = max(image.size)
    if largest > _LARGEST_SIDE:
        scale = _LARGEST_SIDE / largest
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BOX)
    encoded = io.BytesIO()
    image.save(encoded, "WEBP", lossless=largest <= _LOSSLESS_SIDE, quality=90)
    return "data:image/webp;base64," + base64.b64encode(encoded.getvalue()).decode()
