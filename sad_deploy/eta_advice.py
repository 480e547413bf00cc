"""Why no η keeps the limit, and what to do about it: recalibration and saliency cost different things."""

from __future__ import annotations

from sad_runtime.choices import Normalization
from sad_runtime.errors import UserError

from .attack_config import AttackKind
from .eta import EtaChoice, EtaRow
from .sweep import CalibrationSettings

_NOISE = 2.0
"""Points of a drop's 95 % interval, to either side, beyond which its images are too few for the limit."""


def refusal(choice: EtaChoice) -> UserError:
    """The error that says what costs too much, with the advice that fits it.

    Args:
        choice: A sweep in which no η keeps the limit.
    """
    recalibrated, best = choice.recalibrated, choice.chosen
    early = f"stopped after {best.batches} batches: " if choice.stopped else ""
    return UserError(
        f"{early}no eta costs at most {choice.max_drop:g} points of clean accuracy: recalibration alone "
        f"(eta 0) costs {_points(recalibrated)}, with eta {best.eta:g} it is {_points(best)}",
        hint="; ".join(advice(choice)),
    )


def advice(choice: EtaChoice) -> list[str]:
    """What to try, the likeliest first; for the command line."""
    settings = choice.calibration.settings
    if choice.recalibrated.drop > choice.max_drop:
        tried = [
            "saliency is not what costs it, the statistics of attacked images are",
            f"try {_other_attacks(settings)}, fewer or more --batches, or larger batches",
        ]
    else:
        tried = ["try " + ", ".join([*_gentler(settings), "a larger --max-drop"])]
    low, high = choice.chosen.comparison.interval
    if high - low > 2 * _NOISE:
        n = choice.chosen.accuracy.images
        tried.append(
            f"{n} images tell such a drop only to ±{(high - low) / 2:.1f} points: --val-data with more"
        )
    return [*tried, "--allow-drop writes the bundle all the same"]


def _other_attacks(settings: CalibrationSettings) -> str:
    weaker = {AttackKind.PGD: (AttackKind.EQ3, AttackKind.NONE), AttackKind.NONE: (AttackKind.EQ3,)}
    kinds = weaker.get(settings.attack.kind, (AttackKind.NONE,))
    smaller = ", a smaller --epsilon" if settings.attack.kind.bounded else ""
    return " or ".join(f"--attack {kind}" for kind in kinds) + smaller


def _gentler(settings: CalibrationSettings) -> list[str]:
    return [
        *([] if settings.normalization is Normalization.RMS else ["--normalization rms"]),
        *([] if settings.clip else ["--clip"]),
    ]


def _points(row: EtaRow) -> str:
    low, high = row.comparison.interval
    return f"{row.drop:.1f} points (95 %: {low:.1f} to {high:.1f})"
