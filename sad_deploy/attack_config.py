"""Which adversarial samples to make, and how strong; free of torch, so that the command line may read it."""

from __future__ import annotations

import dataclasses
import enum
import math

from sad_runtime.errors import UserError


class AttackKind(enum.StrEnum):
    """Which adversarial samples are made.

    ``pgd``: projected gradient descent in the L∞ ball, x ← Π(x + α·sign ∂ℓ/∂x), k times from a random
    start. ``fgsm``: x + ε·sign ∂ℓ/∂x. ``eq3``: the paper's x + δ, δ = ∂ℓ/∂x: the raw gradient of each
    sample's own cross-entropy in the network's input space, neither scaled nor signed, so ε and steps do
    not apply (δ is small where the model is confident). ``none``: the clean images, for ablations.
    """

    NONE = "none"
    EQ3 = "eq3"
    FGSM = "fgsm"
    PGD = "pgd"

    @property
    def bounded(self) -> bool:
        """Whether the change stays within ε of the image in L∞."""
        return self in (AttackKind.FGSM, AttackKind.PGD)

    @property
    def iterative(self) -> bool:
        """Whether it takes steps."""
        return self is AttackKind.PGD


@dataclasses.dataclass(frozen=True)
class Attack:
    """One attack's configuration.

    Attributes:
        kind: Which one.
        epsilon: L∞ radius in pixels, in [0, 1]. FGSM and PGD.
        steps: Gradient steps of PGD.
        step_size: Size of one PGD step in pixels; None is 2.5·ε/steps.
        random_start: Whether PGD starts uniformly inside the ball.
    """

    kind: AttackKind = AttackKind.PGD
    epsilon: float = 8 / 255
    steps: int = 10
    step_size: float | None = None
    random_start: bool = True

    def __post_init__(self) -> None:
        problems = []
        if not (math.isfinite(self.epsilon) and 0 <= self.epsilon <= 1):
            problems.append(f"epsilon must be within [0, 1] (pixels), got {self.epsilon}")
        if self.steps < 1:
            problems.append(f"steps must be at least 1, got {self.steps}")
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size > 0):
            problems.append(f"step size must be positive, got {self.step_size}")
        if problems:
            raise UserError("; ".join(problems), hint="epsilon is in pixels of [0, 1]: 8/255, not 8")

    @property
    def alpha(self) -> float:
        """Size of one PGD step, in pixels."""
        return self.step_size if self.step_size is not None else 2.5 * self.epsilon / self.steps
