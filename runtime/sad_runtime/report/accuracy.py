"""How right the answers of a run are, as HTML: every network, by class, mistakes, confidence; no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..labelled import RunScores, Scores
from .listing import distinct
from .table import table
from .text import in_html

_MISTAKES = 20
_CLASSES = 500


def accuracy(scores: RunScores | None) -> str:
    """The section; empty without labels.

    Labels that cannot be right are said in place of figures.
    """
    if scores is None:
        return ""
    if problem := scores.problem:
        inside = f"<p class=message>{in_html(problem[0])}. {in_html(problem[1])}</p>"
    else:
        networks, names = scores.networks, distinct(scores.labels.classes)
        parts = (_overall(networks), _paired(scores), _by_class(networks, names))
        first = next(iter(networks.values()))
        inside = "\n".join((*parts, _mistakes(first, names), _calibration(first)))
    without = f"{scores.unlabelled:,} images have no label. " if scores.unlabelled else ""
    note = (
        f"<p class=kept>{without}Labels are those of {in_html(scores.labels.name)}; nothing is attacked.</p>"
    )
    return (
        "<section aria-labelledby=accuracy-title class=accuracy>\n<h2 id=accuracy-title>Accuracy</h2>\n"
        f"{note}\n{inside}\n</section>"
    )


def _overall(networks: Mapping[str, Scores]) -> str:
    rows = []
    for name, each in networks.items():
        low, high = each.accuracy.interval
        error = "–" if each.calibration_error is None else f"{each.calibration_error:.1f} points"
        right = f"{each.accuracy.count:,} of {each.accuracy.images:,}"
        rows.append((name, f"{each.accuracy.percent:.2f} %", f"{low:.2f} … {high:.2f}", right, error))
    return table(("Network", "Accuracy", "95 %", "Right", "Confidence − accuracy"), rows)


def _paired(scores: RunScores) -> str:
    paired = scores.paired
    if paired is None:
        return ""
    verdict = f"p = {paired.p:.2g}" if paired.is_significant else "not significant"
    points = f"{paired.points:+.2f}".replace("-", "−")
    return (
        f"<p>The saliency put {paired.only_defended:,} right and {paired.only_undefended:,} wrong: "
        f"{points} points, {verdict}. The network before calibration is not in this run.</p>"
    )


def _by_class(networks: Mapping[str, Scores], names: Sequence[str]) -> str:
    first = next(iter(networks.values()))
    rows = [
        (
            names[label],
            f"{share.images:,}",
            *(f"{each.by_class[label].percent:.1f} %" for each in networks.values()),
        )
        for label, share in sorted(first.by_class.items(), key=lambda item: item[1].percent)[:_CLASSES]
    ]
    inside = table(("Class", "Images", *networks), rows)
    return f"<details><summary>By class, the lowest first</summary>{inside}</details>"


def _mistakes(scores: Scores, names: Sequence[str]) -> str:
    rows = [(names[true], names[said], f"{n:,}") for true, said, n in scores.mistaken(_MISTAKES)]
    if not rows:
        return ""
    inside = table(("Class", "Taken for", "Images"), rows)
    return f"<details><summary>What is taken for what</summary>{inside}</details>"


def _calibration(scores: Scores) -> str:
    rows = [
        (f"{each.confidence:.1f} %", f"{each.accuracy:.1f} %", f"{each.images:,}")
        for each in scores.calibration
    ]
    inside = table(("Mean confidence", "Accuracy", "Images"), rows)
    return f"<details><summary>How right confidence is</summary>{inside}</details>"
