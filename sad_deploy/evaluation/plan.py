"""Which attacks are run, in which order, and what fits into a budget of time.

Every way in is screened with APGD on the cross-entropy, on all images; then come attacks that see less; what
is left is spent on the images that resisted all of it.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .oracles import Array, Counts
from .subject import Subject
from .threat import Threat
from .work import Attack

KNOWS = {
    "apgd": "weights",
    "pgd": "weights",
    "cw": "weights",
    "rays": "labels",
    "square": "scores",
    "onepixel": "scores",
    "zoo": "scores",
}
"""What an attacker must see for an attack."""

_ORDER = ("own", "plain", "base", "transfer", "constant", "exact")

DOUBLED = "the strongest of these, survivors only"
"""Words for the way of :func:`doubled`."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is spent.

    Attributes:
        steps: Of every attack with gradients.
        targets: Wrong classes that survivors are pushed to.
        rays: Queries for labels, an image; 0: not run.
        square: Queries for scores, an image; 0: not run.
    """

    steps: int = 100
    targets: int = 3
    rays: int = 2000
    square: int = 1000


EFFORTS = (
    Effort(),
    Effort(rays=1000, square=500),
    Effort(targets=2, rays=500, square=0),
    Effort(50, 2, 500, 0),
    Effort(50, 1, 0, 0),
    Effort(20, 1, 0, 0),
    Effort(20, 0, 0, 0),
    Effort(10, 0, 0, 0),
)
"""From the strongest to what is hardly one."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """Attacks that form one row of the result.

    Attributes:
        way: What it goes through.
        knows: What the attacker must see.
        name: Of the attack.
        attacks: One, or several whose union counts.
        survivors: Whether only images are attacked that resisted everything before.
    """

    way: str
    knows: str
    name: str
    attacks: tuple[Attack, ...]
    survivors: bool = False

    @property
    def source(self) -> str:
        """Which of the subject's sources gives the gradients of a screening; empty without gradients."""
        return self.attacks[0].source


def stages(subject: Subject, effort: Effort) -> list[Stage]:
    """The attacks on one subject."""
    keys = [key for key in _ORDER if key in subject.sources]
    found = [
        Stage(
            subject.sources[key].words,
            "weights",
            f"APGD-CE {effort.steps}",
            (Attack("apgd", key, steps=effort.steps),),
        )
        for key in keys
    ]
    blind = (("rays", "RayS", effort.rays), ("square", "Square", effort.square))
    found += [
        Stage(f"{subject.name}, {queries:,} queries", KNOWS[kind], name, (Attack(kind, queries=queries),))
        for kind, name, queries in blind
        if queries
    ]
    if effort.targets:
        margins = tuple(
            Attack("apgd", key, "margin", rank, effort.steps)
            for rank in range(1, effort.targets + 1)
            for key in keys
        )
        plural = "margin" if effort.targets == 1 else f"{effort.targets} margins"
        found.append(Stage("all of these, survivors only", "weights", f"APGD {plural}", margins, True))
    return found


def doubled(screening: Stage) -> Stage:
    """The same attack with twice the steps, on what is left: it should find nothing more."""
    (attack,) = screening.attacks
    twice = dataclasses.replace(attack, steps=2 * attack.steps)
    return Stage(DOUBLED, screening.knows, f"APGD-CE {twice.steps}", (twice,), survivors=True)


def with_doubled(planned: Sequence[Stage]) -> list[Stage]:
    """The stages and, for an estimate of time, the first of them with twice the steps."""
    return [*planned, doubled(planned[0])]


@dataclasses.dataclass(frozen=True)
class Costs:
    """CPU seconds an image.

    Attributes:
        victim: Of one answer.
        sources: Of one gradient, by source.
    """

    victim: float
    sources: Mapping[str, float]

    @classmethod
    def measured(cls, subject: Subject, images: Array, labels: Array) -> Costs:
        """On a few images, the second of two runs."""
        victim, sources = subject.victim.open(Counts()), {}
        for key, source in subject.sources.items():
            gradient = functools.partial(source.open(Counts()).of_label, images, labels)
            sources[key] = _seconds(gradient) / len(images)
        return cls(_seconds(lambda: victim(images)) / len(images), sources)

    def of(self, attack: Attack) -> float:
        """At most: of an image that resists."""
        if KNOWS[attack.kind] != "weights":
            queries = attack.queries or attack.samples * (attack.steps + 1)
            return queries * self.victim
        gradient = self.sources[attack.source]
        if attack.kind == "pgd":
            return attack.steps * (attack.samples * gradient + self.victim)
        if attack.kind == "cw":
            return attack.steps * 2 * gradient + self.victim
        return (attack.steps + 1) * gradient + 14 * self.victim


def _seconds(run: Callable[[], object]) -> float:
    run()
    started = time.process_time()
    run()
    return max(time.process_time() - started, 1e-6)


def expected_cost(
    subjects: Mapping[str, Subject],
    costs: Mapping[str, Costs],
    effort: Effort,
    threats: Sequence[Threat],
    images: int,
) -> float:
    """CPU seconds at most, if every image resists."""
    return (
        images
        * len(threats)
        * sum(
            costs[key].of(attack)
            for key, subject in subjects.items()
            for stage in with_doubled(stages(subject, effort))
            for attack in stage.attacks
        )
    )


def affordable(
    subjects: Mapping[str, Subject],
    costs: Mapping[str, Costs],
    threats: Sequence[Threat],
    images: int,
    seconds: float | None,
) -> Effort:
    """The strongest effort that fits; the least one where none does.

    Args:
        subjects: Everything that is attacked.
        costs: Of each.
        threats: Each takes as long.
        images: How many.
        seconds: Of CPU; None: no limit.
    """
    chosen = EFFORTS[0]
    if seconds is not None:
        for chosen in EFFORTS:
            if expected_cost(subjects, costs, chosen, threats, images) <= seconds:
                break
    return chosen


def left_out(effort: Effort) -> list[str]:
    """What an effort leaves out of the strongest, in words."""
    full, said = EFFORTS[0], []
    if effort.steps < full.steps:
        said.append(f"only {effort.steps} of {full.steps} steps (--budget)")
    if effort.targets < full.targets:
        said.append(f"only {effort.targets} of {full.targets} target classes (--budget)")
    for name, has, wants in (("RayS", effort.rays, full.rays), ("Square", effort.square, full.square)):
        if has < wants:
            said.append(
                f"{name}: only {has} of {wants:,} queries (--budget)" if has else f"{name} (--budget)"
            )
    return said


def sample(images: Array, labels: Array, count: int = 4) -> tuple[Array, Array]:
    """A few images to measure on, repeated where there are fewer."""
    index = np.resize(np.arange(len(images)), count)
    return images[index], labels[index]
