"""The course of η in words, as JSON, and as a plot: never a figure without norm, ε, images and attack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sad_runtime.labelled import Share

from .plotting import drawn, new_figure
from .recipe import Recipe
from .tradeoff import BOTH_PASSES, FIRST_PASS, Measured, Tradeoff

SCHEMA = 1
NOT_THE_WORST = "a fast attack, not the worst case: a better one can only lower these figures"

# Okabe and Ito's blue, orange and green, and grey.
_CLEAN, _WORST, _ALONE, _OTHER = "#0072B2", "#D55E00", "#E69F00", "#777777"
_INCHES = (10, 6)


def conditions(found: Tradeoff, measured: Measured, model: str) -> tuple[str, str]:
    """What the figures depend on, in two lines."""
    images = found.clean.images
    calibrated = f", {found.batches} batches of {found.batch_size}" if found.batches else ""
    return (
        f"eta of {model} · {found.threat} · {found.attack} · {images} {measured.split} images of "
        f"{measured.source} · seed {found.seed}",
        f"{found.update.words}{calibrated}",
    )


def lines(found: Tradeoff, measured: Measured, model: str) -> Iterator[str]:
    """The table, for a terminal."""
    yield from conditions(found, measured, model)
    yield ""
    yield (
        f"  {'eta':>10}{'moves a pixel by':>18}{'clean':>9}  {'95 %':<16}{'both passes':>12}"
        f"{'first pass':>12}{'worse':>9}  95 %"
    )
    yield _row("undefended", "", found.clean, "", "", found.undefended)
    for point in found.points:
        moved = f"{point.grey_levels:.2g} of 255" if point.eta else ""
        both, first = (f"{point.alone[way].percent:.1f}" for way in (BOTH_PASSES, FIRST_PASS))
        yield _row(f"{point.eta:g}", moved, point.clean, both, first, point.worst)
    yield ""
    yield "  both passes: attacked through the defence, S constant; first pass: attacked alone, transferred;"
    yield "  worse: per image, of the two; undefended: the network before calibration, attacked itself"
    yield f"  {NOT_THE_WORST}"


def _row(name: str, moved: str, clean: Share, both: str, first: str, worst: Share) -> str:
    return (
        f"  {name:>10}{moved:>18}{clean.percent:>7.1f} %  {_interval(clean):<16}{both:>12}{first:>12}"
        f"{worst.percent:>7.1f} %  {_interval(worst)}"
    )


def _interval(share: Share) -> str:
    low, high = share.interval
    return f"{low:.1f} … {high:.1f}"


def as_dict(found: Tradeoff, measured: Measured, model: str, recipe: Recipe) -> dict[str, Any]:
    """For JSON."""
    return {
        "schema": SCHEMA,
        "model": model,
        "threat_model": {"norm": found.threat.norm.value, "epsilon": found.threat.epsilon},
        "attack": {"name": "APGD-CE", "steps": found.steps, "starts": 1, "worst_case": False},
        "data": {"source": measured.source, "split": measured.split, "images": found.clean.images},
        "seed": found.seed,
        "calibration": {
            "update": found.update.value,
            "batches": found.batches,
            "batch_size": found.batch_size,
            "attack": recipe.attack.kind.value,
            "epsilon": recipe.attack.epsilon if recipe.attack.kind.bounded else None,
            "normalization": recipe.normalization.value,
            "clip": recipe.clip,
        },
        "undefended": {"clean": found.clean.as_dict(), "attacked": found.undefended.as_dict()},
        "points": [
            {
                "eta": point.eta,
                "grey_levels": point.grey_levels,
                "clean": point.clean.as_dict(),
                "alone": {way: share.as_dict() for way, share in point.alone.items()},
                "attacked": point.worst.as_dict(),
            }
            for point in found.points
        ],
        "note": NOT_THE_WORST,
    }


def draw(found: Tradeoff, measured: Measured, model: str, path: Path) -> bytes:
    """Accuracies by η, with 95 % intervals, and the undefended network as horizontal lines.

    Args:
        found: The course.
        measured: On which images.
        model: What to call the network.
        path: Where the plot will be; only its ending counts.

    Returns:
        The file's contents.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(*_INCHES)
    axis = figure.subplots()
    at = range(len(found.points))
    shown = {
        "clean": ([point.clean for point in found.points], _CLEAN, "-"),
        "attacked, the worse per image": ([point.worst for point in found.points], _WORST, "-"),
        "attacked through both passes alone": ([p.alone[BOTH_PASSES] for p in found.points], _ALONE, ":"),
    }
    for label, (shares, color, style) in shown.items():
        percents = [share.percent for share in shares]
        axis.plot(at, percents, style, color=color, marker="o", label=label)
        if style == "-":
            low, high = zip(*(share.interval for share in shares), strict=True)
            axis.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)
    for label, share, style in (
        ("undefended, clean", found.clean, "--"),
        ("undefended, attacked itself", found.undefended, "-."),
    ):
        axis.axhline(share.percent, color=_OTHER, linestyle=style, linewidth=1.2, label=label)
    axis.set_xticks(at, [f"{point.eta:g}\n{point.grey_levels:.2g}" for point in found.points])
    axis.set_xlabel("η, and grey levels of 255 that it moves a pixel by")
    axis.set_ylabel("accuracy, %")
    axis.set_ylim(-2, 102)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3)
    first, second = conditions(found, measured, model)
    figure.suptitle(f"{first}\n{second}; not the worst case: run evaluate", fontsize=9)
    return drawn(figure, path)
