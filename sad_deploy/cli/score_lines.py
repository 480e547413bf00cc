"""How right answers to labelled images are, in the terminal: ``infer --labels``, ``evaluate --clean``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sad_runtime.labelled import Paired, Scores, Share

_MISTAKES = 10
_CLASSES = 20
_NAME = 28


def score_lines(title: str, found: Mapping[str, Scores], classes: Sequence[str]) -> Iterator[str]:
    """Accuracy without an attack, of every network.

    Args:
        title: Of what, on what.
        found: By the network's name, the one that is deployed first.
        classes: K names.
    """
    yield f"accuracy of {title} · no attack"
    yield ""
    yield f"  {'':<{_NAME}}{'accuracy':>10}  {'95 %':<16}{'confidence − accuracy':>22}"
    for name, each in found.items():
        error = "–" if each.calibration_error is None else f"{each.calibration_error:.1f} points"
        yield (
            f"  {name[: _NAME - 1]:<{_NAME}}{each.accuracy.percent:>8.1f} %  {interval(each.accuracy):<16}"
            f"{error:>22}"
        )
    first = next(iter(found.values()))
    yield ""
    yield f"  {'class':<{_NAME}}{'images':>8}" + "".join(f"{name.split(',')[0][:12]:>14}" for name in found)
    worst = sorted(first.by_class, key=lambda label: first.by_class[label].percent)[:_CLASSES]
    for label in sorted(worst):
        cells = "".join(f"{each.by_class[label].percent:>12.0f} %" for each in found.values())
        yield f"  {classes[label][: _NAME - 1]:<{_NAME}}{first.by_class[label].images:>8}{cells}"
    if len(first.by_class) > _CLASSES:
        yield f"  the {_CLASSES} with the lowest accuracy of {len(first.by_class)} classes; --json has all"
    if mistakes := first.mistaken(_MISTAKES):
        yield ""
        yield "  taken for another class" + (", defended:" if len(found) > 1 else ":")
        for true, said, images in mistakes:
            yield f"    {classes[true]} as {classes[said]}: {images}"


def paired_line(paired: Paired) -> str:
    """What the saliency changed, image by image."""
    verdict = f"p = {paired.p:.2g}" if paired.is_significant else "not significant"
    return (
        f"  the saliency put {paired.only_defended} right and {paired.only_undefended} wrong: "
        + f"{paired.points:+.1f} points, {verdict}".replace("-", "−")
    )


def interval(value: Share) -> str:
    """95 %, in percent."""
    low, high = value.interval
    return f"{low:.1f} … {high:.1f}"
