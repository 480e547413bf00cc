"""Whether the attacks can be believed: signs of masked gradients and of weak attacks, each in words.

An evaluation that looks good because its attacks are weak is worse than none. Every check says where it comes
from and what it measured; a failed one lowers no figure, it says how far to trust it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from sad_runtime.choices import Norm, Way

from .campaign import Campaign
from .oracles import Counts, GradientSource
from .outcome import Outcome
from .plan import DOUBLED, Stage
from .planted import INNER, find_planted
from .threat import Threat

CARLINI = "Carlini et al. 2019, On Evaluating Adversarial Robustness"
ATHALYE = "Athalye et al. 2018, Obfuscated Gradients"
CROCE = "Croce et al. 2022, Evaluating Adaptive Test-Time Defenses"

ZIMMERMANN = "Zimmermann et al. 2022, Increasing Confidence in Adversarial Robustness Evaluations"

_CHECKED_IMAGES = 50
_PLANTED_IMAGES = 5
PLANTED_GRADIENTS = _PLANTED_IMAGES * (INNER + 1)
"""How many gradients, about, :func:`planted` takes."""
_LARGE = {Norm.LINF: 0.5, Norm.L2: 10.0}
_PIPELINE = (Way.CONSTANT, Way.EXACT)


@dataclasses.dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        id: A short name.
        passed: Whether all is well.
        words: What was found, with its figure.
        source: Who asks for it.
    """

    id: str
    passed: bool
    words: str
    source: str


def masking(outcome: Outcome) -> list[Check]:
    """Whether attackers who know less, or who ignore the defence, do better than the gradient through it."""
    through = outcome.alone(lambda stage: stage.source in _PIPELINE)
    if through is None:
        return []
    found = []
    comparisons: tuple[tuple[str, Callable[[Stage], bool], str, str], ...] = (
        (
            "transfer",
            lambda stage: stage.knows == "weights" and stage.source not in _PIPELINE,
            "ignoring the saliency",
            CARLINI,
        ),
        ("labels", lambda stage: stage.knows == "labels", "an attacker who sees only labels", CROCE),
        ("scores", lambda stage: stage.knows == "scores", "an attacker who sees only scores", CARLINI),
    )
    for name, fits, who, source in comparisons:
        other = outcome.alone(fits)
        if other is None:
            continue
        points = through - other
        words = f"{who} beats the gradient through both passes by {points:.1f} points"
        if points <= 0:
            words = (
                f"{who} does not beat the gradient through both passes ({other:.1f} against {through:.1f} %)"
            )
        found.append(
            Check(f"masking_{name}", points <= 0, ("masking: " if points > 0 else "") + words, source)
        )
    return found


def zero_gradients(outcome: Outcome) -> Check:
    """Whether gradients vanish."""
    zero = sum(row.counts.zero_gradients for row in outcome.rows)
    asked = max(sum(row.counts.backward for row in outcome.rows), 1)
    share = 100 * zero / asked
    words = "no zero gradients" if not zero else f"{share:.2g} % of the gradients were zero"
    return Check("zero_gradients", share < 1, words, ATHALYE)


def strength(campaign: Campaign, key: str, outcome: Outcome) -> list[Check]:
    """A larger ε must reach 0 %, and twice the steps must not find more."""
    twice = next(row for row in outcome.rows if row.stage.way == DOUBLED)
    (attack,) = twice.stage.attacks
    strongest = dataclasses.replace(attack, steps=attack.steps // 2)
    some = np.zeros(len(outcome.clean), bool)
    some[np.flatnonzero(outcome.clean)[:_CHECKED_IMAGES]] = True
    large = Threat(max(_LARGE[outcome.threat.norm], outcome.threat.epsilon), outcome.threat.norm)
    broken = campaign.broken_by(key, strongest, large, some)
    left = 100 * float((some & ~broken).sum()) / max(int(some.sum()), 1)
    found = [
        Check(
            "large_epsilon",
            left == 0,
            f"ε {large.epsilon:g} leaves {left:.1f} %" if left else f"ε {large.epsilon:g} reaches 0 %",
            CARLINI,
        )
    ]
    points = 100 * float(twice.broken.sum()) / len(twice.broken)
    words = f"twice the steps: −{points:.1f} points" if points else "twice the steps: +0.0"
    found.append(Check("twice_the_steps", points <= 1, words, CARLINI))
    return found


def planted(campaign: Campaign, key: str, outcome: Outcome, *, seed: int) -> list[Check]:
    """Whether a weakness that is known to be there is found."""
    features = campaign.subjects[key].features
    if features is None:
        return []
    some = np.flatnonzero(outcome.clean)[:_PLANTED_IMAGES]
    source = GradientSource(features, features, Counts())
    steps = campaign.effort.steps
    found = find_planted(source, campaign.images.pixels[some], outcome.threat, steps=steps, seed=seed)
    if not found.planted:
        return []
    words = f"a planted weakness was found in {found.found} of {found.planted} images"
    return [Check("planted", found.found >= 0.8 * found.planted, words, ZIMMERMANN)]


def monotone(outcomes: list[Outcome]) -> list[Check]:
    """Whether a larger ε breaks more images."""
    ordered = sorted(outcomes, key=lambda each: each.threat.epsilon)
    if len(ordered) < 2:
        return []
    rates = [each.worst_case.percent for each in ordered]
    falls = all(a >= b for a, b in itertools.pairwise(rates))
    listed = " → ".join(f"{rate:.1f}" for rate in rates)
    return [Check("monotone", falls, f"a larger ε breaks more: {listed} %", CARLINI)]


def rounding(outcome: Outcome) -> Check:
    """Whether what was found survives being written to 8-bit files."""
    broken = int((outcome.clean & ~outcome.robust).sum())
    kept = int(outcome.rounded.sum())
    words = f"{kept} of {broken} adversarial images still fool it as 8-bit files within ε"
    return Check("rounding", broken == 0 or kept >= 0.5 * broken, words, "auto-attack issue 44")
