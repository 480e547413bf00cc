"""Reading what the taps of sliding windows read, and writing back to where they read it (:mod:`.axes`).

Writing uses no ScatterND: within a phase every tap is a shift, and the phases are interleaved at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..graph.expression import Expr
from ..graph.values import static
from .axes import Axis, Tap, identity_axis, overlaps, shifts_and_phase, taps
from .words import Words


def gather(g: Words, x: Expr, axes: Sequence[Axis], fill: float) -> dict[Tap, Expr]:
    """What each tap reads: (N, C, *size) → one (N, C, *out) value a tap, ``fill`` outside the input.

    A tap that reads nothing but padding is left out.
    """
    spatial = range(2, 2 + len(axes))
    phases: dict[Tap, Expr] = {}
    read = {}
    for tap in taps(axes):
        shifts, phase = shifts_and_phase(axes, tap)
        lengths = [axis.phase_length(rho) for axis, rho in zip(axes, phase, strict=True)]
        if not all(overlaps(axis.out, t, n) for axis, t, n in zip(axes, shifts, lengths, strict=True)):
            continue
        if phase not in phases:
            phases[phase] = g.take_phase(x, axes, phase)
        # Window o reads element o + t of the phase.
        after = [axis.out + t - n for axis, t, n in zip(axes, shifts, lengths, strict=True)]
        read[tap] = phases[phase].pad(spatial, [-t for t in shifts], after, fill)
    return read


def scatter(g: Words, contributions: Mapping[Tap, Expr], axes: Sequence[Axis]) -> Expr:
    """The transpose of :func:`gather`: (N, C, *out) values a tap, summed into (N, C, *size)."""
    spatial = range(2, 2 + len(axes))
    phases: dict[Tap, list[Expr]] = {}
    for tap, value in contributions.items():
        shifts, phase = shifts_and_phase(axes, tap)
        if not all(overlaps(axis.out, t, axis.grid) for axis, t in zip(axes, shifts, strict=True)):
            continue
        ends = [axis.grid - axis.out - t for axis, t in zip(axes, shifts, strict=True)]
        phases.setdefault(phase, []).append(value.pad(spatial, shifts, ends))
    return g.interleave({phase: g.sum_terms(terms) for phase, terms in phases.items()}, axes)


def sum_over_windows(g: Words, share: Expr, axes: Sequence[Axis]) -> Expr:
    """The transpose of a sum over windows: every tap gets its window's share.

    The window is a product of intervals, so one axis after the other needs Σ k taps instead of Π k.
    """
    for i, axis in enumerate(axes):
        others = [identity_axis(static(n)) for n in share.shape[2:]]
        line = [*others[:i], axis, *others[i + 1 :]]
        share = scatter(g, dict.fromkeys(taps(line), share), line)
    return share
