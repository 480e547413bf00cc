"""The parts of the page that need no script: figures, facts, bars and errors, as HTML."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from ..bundle.robustness import NOT_EVALUATED
from ..choices import Normalization
from ..labelled import RunScores
from ..manifest import Manifest
from .listing import Listing, distinct
from .tally import BINS, EXAMPLES, Tally
from .text import in_html

SHOWN_CLASSES = 10
"""Bars of classes that are seen at first."""

LISTED_CLASSES = 500
"""Bars of classes at most."""

_NORMALIZATIONS = {
    Normalization.NONE: "none",
    Normalization.RMS: "unit root mean square",
    Normalization.LINF: "unit largest magnitude",
    Normalization.SIGN: "sign",
}
_ADDED = {
    Normalization.NONE: "ηS",
    Normalization.RMS: "ηS/rms(S)",
    Normalization.LINF: "ηS/max|S|",
    Normalization.SIGN: "η·sign(S)",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """How the rows came about.

    Attributes:
        backend: Where the bundle ran.
        seconds: How long.
        processed: Images that took that time.
        robust: What an evaluation of the bundle found, a sentence for each ε.
        scores: How right the answers are, where labels are known.
        is_defended: Whether there is a defence.
    """

    backend: str
    seconds: float
    processed: int
    robust: Sequence[str] = (NOT_EVALUATED,)
    scores: RunScores | None = None
    is_defended: bool = True

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.processed / self.seconds if self.seconds > 0 else 0.0


def captions(manifest: Manifest, run: Run) -> tuple[str, ...]:
    """What the pictures show, in a few characters: of the third ``x + ηS``."""
    if not run.is_defended:
        return ("image",)
    return "image", "saliency", f"x + {_ADDED[manifest.defence.normalization]}"


def figures(counts: Tally, run: Run) -> str:
    """The large numbers at the top."""
    shown = [("image" if counts.images == 1 else "images", f"{counts.images:,}", "")]
    if counts.compared:
        share = f"{100 * counts.changed / counts.compared:.2g} % of {counts.compared:,}"
        labels = "label" if counts.changed == 1 else "labels"
        shown.append((f"{labels} other than in the recalibrated first pass", f"{counts.changed:,}", share))
    kinds = "" if not counts.errors else f"{_count(len(counts.errors), 'kind')} of error"
    shown.append(("failed", f"{counts.failed:,}", kinds))
    shown.append(("images a second", _rate(run.rate), f"{run.processed:,} in {_seconds(run.seconds)}"))
    return "\n".join(
        f"<div><dt>{name}</dt><dd>{value}</dd>{f'<dd class=aside>{note}</dd>' if note else ''}</div>"
        for name, value, note in shown
    )


def facts(manifest: Manifest, run: Run, fingerprint: str, date: str) -> str:
    """What ran: the bundle and the defence."""
    defence, (channels, height, width) = manifest.defence, manifest.preprocessing.shape
    rows = {"Model": manifest.model.name, "Defence": "none: a plain classifier"}
    if run.is_defended:
        rows = {
            "Model": manifest.model.name,
            "Bundle": f"{fingerprint}, written by {manifest.created_by or 'an unknown program'}",
            "Hybridization ratio η": f"{defence.eta:g}",
            "Normalisation of S": _NORMALIZATIONS[defence.normalization],
            "Clip of x + ηS": "to the pixel range" if defence.clip else "none",
            "Robust accuracy": "; ".join(run.robust),
        }
    rows |= {
        "Input": f"{channels}×{height}×{width}",
        "Backend": run.backend,
        "Date": date,
    }
    return "\n".join(
        f"<div><dt>{name}</dt><dd dir=auto>{in_html(value)}</dd></div>" for name, value in rows.items()
    )


def bars_of_classes(counts: Tally, classes: Sequence[str]) -> str:
    """One bar for every class that was predicted, the largest first."""
    names = distinct(classes)
    ordered = sorted(counts.labels.items(), key=lambda item: (-item[1], item[0]))
    largest = ordered[0][1] if ordered else 1
    bars = [_bar(f'data-class="{label}"', names[label], n, largest) for label, n in ordered[:LISTED_CLASSES]]
    first, rest = "\n".join(bars[:SHOWN_CLASSES]), "\n".join(bars[SHOWN_CLASSES:])
    if not first:
        return "<p>No image was classified.</p>"
    listed = f"<ol class=bars role=list>\n{first}\n</ol>"
    if not rest:
        return listed
    beyond = len(ordered) - len(bars)
    more = f"<p>and {_count(beyond, 'class', 'classes')} more</p>" if beyond else ""
    summary = _count(len(ordered) - SHOWN_CLASSES, "more class", "more classes")
    hidden = f"<ol class=bars role=list>\n{rest}\n</ol>{more}"
    return f"{listed}\n<details><summary>{summary}</summary>{hidden}</details>"


def bars_of_confidence(counts: Tally) -> str:
    """One bar for every tenth of the confidence, the highest first."""
    if not counts.labels:
        return "<p>No image was classified.</p>"
    largest = max(counts.confidences)
    width = 100 // BINS
    bars = [
        _bar(
            f'data-from="{i * width}" data-to="{(i + 1) * width}"',
            f"{i * width}–{(i + 1) * width} %",
            counts.confidences[i],
            largest,
        )
        for i in reversed(range(BINS))
    ]
    return "<ol class=bars role=list>\n" + "\n".join(bars) + "\n</ol>"


def error_groups(counts: Tally) -> str:
    """Failures by code with their first examples; empty without failures."""
    if not counts.errors:
        return ""
    groups = "\n".join(
        _error_group(code, n, counts.examples[code])
        for code, n in sorted(counts.errors.items(), key=lambda item: (-item[1], item[0]))
    )
    return f"<section aria-labelledby=errors-title>\n<h2 id=errors-title>Errors</h2>\n{groups}\n</section>"


def what_is_kept(counts: Tally, listing: Listing) -> str:
    """How many images have pictures and which, and what is not listed; empty if there is nothing to say."""
    predicted, kept = counts.images - counts.failed, len(listing.pictures)
    texts = []
    if kept == 0 and predicted:
        texts.append("No pictures were kept.")
    elif counts.lost:
        texts.append(
            f"{kept:,} of {predicted:,} classified images have pictures. Those of an earlier run, which this "
            "one went on from, were not kept."
        )
    elif kept < predicted:
        texts.append(
            f"{kept:,} of {predicted:,} classified images have pictures, to keep this page small: those "
            "whose names have the smallest hashes, a uniform sample that depends neither on the order nor on "
            "interruptions."
        )
    if len(listing) < counts.images:
        texts.append(
            f"{len(listing):,} of {counts.images:,} images are listed: those with pictures, then failures, "
            "then changed labels, then the others from the beginning. All counts above are of all images."
        )
    return f"<p class=kept>{' '.join(texts)}</p>" if texts else ""


def how_to_read(manifest: Manifest, run: Run) -> str:
    """What the pictures and the confidence are."""
    confidence = "It is not the probability of being right.</p>"
    if not run.is_defended:
        return (
            "<p>Pictures are the images as the network got them.</p>\n"
            f"<p>Confidence is the softmax of the logits. {confidence}"
        )
    clipped = "" if manifest.defence.clip else "; values that leave the range of pixels show as its ends"
    return (
        "<p>Pictures, from left to right: the image as the network got it; the magnitude of its saliency S "
        "laid over it, from dark to bright on each image’s own scale; and what the second pass saw, "
        f"{captions(manifest, run)[-1]}{clipped}.</p>\n"
        f"<p>Confidence is the softmax of the defended logits. {confidence}"
    )


def _bar(data: str, name: str, n: int, largest: int) -> str:
    share = 100 * n / largest if largest else 0
    return (
        f"<li><button type=button aria-pressed=false {data}><bdi class=name>{in_html(name)}</bdi>"
        f'<svg aria-hidden=true focusable=false><rect width="{share:.2f}%" height="100%"/></svg>'
        f"<span class=count>{n:,}<span class=unseen> {'image' if n == 1 else 'images'}</span></span>"
        "</button></li>"
    )


def _error_group(code: str, n: int, examples: Iterable[tuple[str, str]]) -> str:
    items = "\n".join(
        f"<li><bdi class=path>{in_html(path)}</bdi> <bdi class=message>{in_html(message)}</bdi></li>"
        for path, message in examples
    )
    first = f"<p>The first {EXAMPLES}:</p>\n" if n > EXAMPLES else ""
    shown = in_html(code)
    return (
        f"<details class=group><summary><code>{shown}</code> <span class=count>{n:,}</span></summary>\n"
        f"{first}<ul>\n{items}\n</ul>\n"
        f'<button type=button class=scripted data-code="{shown}">Show {shown} in the list</button></details>'
    )


def _count(n: int, noun: str, plural: str | None = None) -> str:
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
