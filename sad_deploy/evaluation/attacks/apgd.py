"""Auto-PGD (Croce and Hein, ICML 2020, Algorithm 1), image by image in one batch.

Projected gradient steps with momentum. At checkpoints that come closer and closer, an image whose loss rose
in fewer than three quarters of the steps, or whose best loss did not rise since a checkpoint that kept the
step size, goes on with half the step size from its best point. Fooled images leave the batch.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ..losses import Differentiable, Loss, Slope
from ..threat import Threat
from .search import Array, Problem, Search

MOMENTUM = 0.75
RISING = 0.75
"""Share of steps that must raise the loss, ρ."""


@dataclasses.dataclass(frozen=True)
class Apgd:
    """One run from a random start.

    Attributes:
        source: What gives the gradient.
        loss: What is raised.
        steps: Steps, each with a gradient, after the start.
        direct: Whether the source's logits are the victim's: a point that they misclassify is then shown to
            the victim at once, otherwise the best one at checkpoints and at the end.
    """

    source: Differentiable
    loss: Loss = dataclasses.field(default_factory=lambda: Loss("cross_entropy"))
    steps: int = 100
    direct: bool = True

    def run(self, problem: Problem) -> Search:
        """Attack every image."""
        search, labels = Search(problem), problem.labels
        targets = self.loss.targets(problem.victim(problem.images), labels) if self.loss.rank else labels
        start = problem.threat.random_start(problem.images, list(problem.rngs))
        state = _State(start, self.loss(self.source, start, labels, targets), problem.threat, self.steps)
        self._show(search, state)
        checkpoints = Checkpoints(self.steps)
        for step in range(self.steps):
            state.drop(search.broken[state.index])
            index = state.index
            if not len(index):
                break
            x = state.proposed(problem.images[index], momentum=MOMENTUM if step else 1.0)
            state.move(x, self.loss(self.source, x, labels[index], targets[index]), step)
            due = checkpoints.due()
            self._show(search, state, best=due or step == self.steps - 1)
            if due:
                state.decide(checkpoints.width, step)
                checkpoints.advance()
        return search

    def _show(self, search: Search, state: _State, *, best: bool = False) -> None:
        if self.direct:
            wrong = state.slope.logits.argmax(1) != search.problem.labels[state.index]
            wrong |= ~np.isfinite(state.slope.logits).all(1)
            search.judge(state.index[wrong], state.x[wrong])
        if best:
            left = ~search.broken[state.index]
            search.judge(state.index[left], state.best[left])


class Checkpoints:
    """When step sizes are decided: after 22 % of the steps, then 3 % sooner each time, at least 6 %."""

    def __init__(self, steps: int) -> None:
        self.width = max(int(0.22 * steps), 1)
        self._least, self._less = max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
        self._since = 0

    def due(self) -> bool:
        """Count a step; whether a checkpoint is reached."""
        self._since += 1
        return self._since == self.width

    def advance(self) -> None:
        """To the next one."""
        self.width, self._since = max(self.width - self._less, self._least), 0


class _State:
    """Where each of the images is that still resist; all arrays have one row an image."""

    def __init__(self, x: Array, slope: Slope, threat: Threat, steps: int) -> None:
        self.threat = threat
        self.index = np.arange(len(x))
        self.x, self.previous, self.slope = x, x.copy(), _finite(slope)
        self.best, self.best_loss = x.copy(), self.slope.loss.copy()
        self.best_gradient = self.slope.gradient.copy()
        self.step_size = np.full(len(x), 2 * threat.epsilon, np.float32)
        self.losses = np.empty((len(x), steps))
        self.start_loss = self.slope.loss.copy()
        self.checked_loss = self.slope.loss.copy()
        self.was_halved = np.ones(len(x), bool)

    def drop(self, gone: Array) -> None:
        """Leave images out."""
        if not gone.any():
            return
        keep = ~gone
        self.slope = Slope(*(part[keep] for part in self.slope))
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(self, name, value[keep])

    def proposed(self, origin: Array, *, momentum: float) -> Array:
        """The next point: a step along the gradient, then some of the last move."""
        size = self.step_size.reshape(-1, 1, 1, 1)
        stepped = self.threat.project(self.x + size * self.threat.steepest(self.slope.gradient), origin)
        inertia = self.x - self.previous
        a = np.float32(momentum)
        return self.threat.project(self.x + a * (stepped - self.x) + (1 - a) * inertia, origin)

    def move(self, x: Array, slope: Slope, step: int) -> None:
        """Go there, and remember the best point of each image."""
        self.previous, self.x, self.slope = self.x, x, _finite(slope)
        self.losses[:, step] = self.slope.loss
        better = self.slope.loss > self.best_loss
        self.best[better], self.best_loss[better] = x[better], self.slope.loss[better]
        self.best_gradient[better] = self.slope.gradient[better]

    def decide(self, width: int, step: int) -> None:
        """At a checkpoint: halve step sizes, and go back to the best point, where the loss got stuck."""
        recent = np.concatenate([self.start_loss[:, None], self.losses[:, : step + 1]], 1)[:, -width - 1 :]
        rises = (np.diff(recent, axis=1) > 0).sum(1)
        stuck = ~self.was_halved & (self.checked_loss >= self.best_loss)
        halve = (rises <= RISING * width) | stuck
        self.was_halved, self.checked_loss = halve, self.best_loss.copy()
        self.step_size[halve] /= 2
        self.x = np.where(halve.reshape(-1, 1, 1, 1), self.best, self.x)
        gradient = np.where(halve.reshape(-1, 1, 1, 1), self.best_gradient, self.slope.gradient)
        self.slope = self.slope._replace(gradient=gradient)


def _finite(slope: Slope) -> Slope:
    """A loss that is no number is the lowest, and such a gradient is zero: the search goes on elsewhere."""
    loss = np.where(np.isfinite(slope.loss), slope.loss, -np.inf)
    return Slope(loss, slope.logits, np.nan_to_num(slope.gradient, nan=0, posinf=0, neginf=0))
