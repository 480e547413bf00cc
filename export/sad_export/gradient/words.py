"""The words that a rule writes with where targets differ, a dozen; :mod:`sad_export.lowering` lowers them.

Whatever has one best form on every target is a formula (:mod:`sad_export.graph.expression`) and no word.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

from ..graph.expression import Builder, Expr
from .axes import Axis, Tap
from .convolution import Convolution


class Words(Builder, abc.ABC):
    """What the rules ask of a target."""

    # Masks

    @abc.abstractmethod
    def where_positive(self, y: Expr, dy: Expr) -> Expr:
        """``dy · 1[y > 0]`` for y ≥ 0."""

    @abc.abstractmethod
    def where_within(self, y: Expr, low: Expr | None, high: Expr | None, dy: Expr) -> Expr:
        """``dy · 1[low < y < high]`` for low ≤ y ≤ high; a bound that is None is none."""

    # Products and sums over an image

    @abc.abstractmethod
    def times(self, dy: Expr, factor: Expr) -> Expr:
        """``dy · factor``, where either may be broadcast."""

    @abc.abstractmethod
    def expand(self, value: Expr, like: Expr) -> Expr:
        """Broadcast to the shape of ``like``, whose symbolic dimensions ``value`` already has.

        Raises:
            Unsupported: It would be repeated along the batch.
        """

    @abc.abstractmethod
    def sum_to(self, gradient: Expr, like: Expr) -> Expr:
        """Undo broadcasting: sum over the axes along which ``like`` was repeated."""

    @abc.abstractmethod
    def sum_terms(self, terms: Sequence[Expr], *, of: Expr | None = None) -> Expr:
        """The sum of gradients that reach one value, ``of``: fan-out in the forward graph."""

    # Functions whose derivative has a better form on some target

    @abc.abstractmethod
    def swish_gradient(self, x: Expr, s: Expr, y: Expr, dy: Expr, alpha: float = 1.0) -> Expr:
        """dx of y = x·s with s = σ(αx): dy · s·(1 + α·(x − y))."""

    @abc.abstractmethod
    def hard_swish_gradient(self, x: Expr, dy: Expr) -> Expr:
        """dx of y = x·h with h = min(max(x/6 + ½, 0), 1): dy · (h + x/6 · 1[0 < h < 1])."""

    # Windows

    @abc.abstractmethod
    def take_phase(self, x: Expr, axes: Sequence[Axis], phase: Tap) -> Expr:
        """Every stride-th position: x[…, ρ::stride, …]."""

    @abc.abstractmethod
    def interleave(self, phases: Mapping[Tap, Expr], axes: Sequence[Axis]) -> Expr:
        """Put phases of shape (N, C, *grid) in their places in (N, C, *size); absent ones are zero."""

    @abc.abstractmethod
    def conv_input(self, conv: Convolution, dy: Expr) -> Expr:
        """dx of a convolution, from the weight that the forward pass reads."""

    @abc.abstractmethod
    def pools_by_rows(self, axes: Sequence[Axis]) -> bool:
        """Whether a maximum is sought along the rows first, and then along the columns."""
