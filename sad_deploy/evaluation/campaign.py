"""The whole evaluation: every subject under every threat, stage by stage, and the checks of the attacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sad_runtime.labelled import share

from .oracles import Array, Counts
from .outcome import Outcome, Row, merged
from .plan import DOUBLED, Costs, Effort, Stage, doubled, stages
from .subject import Subject
from .threat import Threat
from .work import Attack, Images, Task, Workers, pieces

Progress = Callable[[str, float], None]
"""Told what is done, and which share of all work is."""


@dataclasses.dataclass
class Campaign:
    """Attacks subjects.

    Args:
        workers: Who does it.
        subjects: By name.
        images: Which.
        effort: How much.
        costs: Of each subject, for the progress.
        progress: Told of every piece.
    """

    workers: Workers
    subjects: Mapping[str, Subject]
    images: Images
    effort: Effort
    costs: Mapping[str, Costs]
    progress: Progress
    total: float = 1.0
    _spent: float = 0.0

    def attack(self, key: str, threat: Threat, *, blind_on_all: bool = True) -> Outcome:
        """One subject under one threat, all stages.

        Args:
            key: Of the subject.
            threat: What is allowed.
            blind_on_all: Whether attacks without gradients see all images, so that what each leaves alone is
                known, or survivors only, which takes less time and leaves the same worst case.
        """
        subject = self.subjects[key]
        clean, non_finite = self._clean(key)
        left, rows = clean.copy(), []
        adversarial = self.images.pixels.copy()
        pending = stages(subject, self.effort)
        while pending:
            stage = pending.pop(0)
            if not blind_on_all and not stage.source:
                stage = dataclasses.replace(stage, survivors=True)
            before = clean if not stage.survivors else left
            row, found = self.run_stage(key, stage, threat, before)
            for i, image in found.items():
                if left[i]:
                    adversarial[i] = image
            left &= ~row.broken
            rows.append(dataclasses.replace(row, worst=share(left)))
            if not pending and stage.way != DOUBLED:
                pending.append(doubled(_strongest(rows)))
        return Outcome(
            subject.name,
            threat,
            clean,
            tuple(rows),
            adversarial,
            self._rounded(key, threat, adversarial, clean & ~left),
            non_finite,
        )

    def broken_by(self, key: str, attack: Attack, threat: Threat, which: Array) -> Array:
        """(N,) which of some images one attack misclassifies."""
        row, _ = self.run_stage(key, Stage("", "", "", (attack,)), threat, which)
        return row.broken

    def run_stage(self, key: str, stage: Stage, threat: Threat, which: Array) -> tuple[Row, dict[int, Array]]:
        """One row, and the adversarial images by index.

        Args:
            key: Of the subject.
            stage: Its attacks; of several, each sees what the ones before it left.
            threat: What is allowed.
            which: (N,) the images that are attacked.
        """
        n, left = len(self.images), which.copy()
        images: dict[int, Array] = {}
        counts, seconds = Counts(), 0.0
        told = self._told(stage.name or "checks", key)
        for attack in stage.attacks:
            tasks = [Task(key, attack, threat, piece) for piece in pieces(np.flatnonzero(left))]
            broken, found, more, took = merged(n, self.workers.run(tasks, told))
            images = {**found, **images}
            left &= ~broken
            counts.add(more)
            seconds += took
        broken = which & ~left
        alone = None if stage.survivors else share(which & ~broken)
        return Row(stage, broken, alone, share(left), counts, seconds), images

    def _told(self, name: str, key: str) -> Callable[[Task], None]:
        def told(task: Task) -> None:
            self._spent += self.costs[key].of(task.attack) * len(task.index)
            self.progress(name, min(self._spent / max(self.total, 1e-9), 1.0))

        return told

    def _clean(self, key: str) -> tuple[Array, int]:
        logits = self.answers(key, self.images.pixels)
        finite = np.isfinite(logits).all(1)
        return (logits.argmax(1) == self.images.labels) & finite, int((~finite).sum())

    def answers(self, key: str, pixels: Array) -> Array:
        """Logits of a subject."""
        return self.workers.bench.victim(key).in_batches(pixels)

    def _rounded(self, key: str, threat: Threat, adversarial: Array, broken: Array) -> Array:
        """Which of the fooling images still fool the subject as 8-bit files."""
        still, index = np.zeros(len(broken), bool), np.flatnonzero(broken)
        if len(index):
            files = threat.rounded(adversarial[index], self.images.pixels[index])
            allowed = threat.allows(files, self.images.pixels[index])
            wrong = self.answers(key, files).argmax(1) != self.images.labels[index]
            still[index] = wrong & allowed
        return still


def _strongest(rows: Sequence[Row]) -> Stage:
    """The screening with gradients that left fewest images."""
    screenings = [row for row in rows if row.alone is not None and row.stage.knows == "weights"]
    return min(screenings, key=lambda row: row.alone.count if row.alone else 0).stage
