"""What a graph is rewritten to for the target that it is meant for (:class:`sad_export.gradient.Target`)."""

from __future__ import annotations

import onnx_ir as ir

from .gradient import Target
from .passes import BlockedAffinePass, BlockedBroadcastPass, BlockedGroupsPass, StridedStemPass

_BEFORE: dict[Target, tuple[ir.passes.InPlacePass, ...]] = {
    Target.CPU: (BlockedGroupsPass(), BlockedAffinePass()),
    Target.INT8: (StridedStemPass(),),
}
# The gradient's rules read what these rewrite, and write the like by themselves.
_AFTER: dict[Target, tuple[ir.passes.InPlacePass, ...]] = {Target.CPU: (BlockedBroadcastPass(),)}


def prepare(model: ir.Model, target: Target) -> None:
    """Rewrite a forward graph, in place, before it is differentiated."""
    for step in _BEFORE.get(target, ()):
        step(model)


def complete(model: ir.Model, target: Target) -> None:
    """Rewrite a whole graph, in place, with its backward and all."""
    for step in _AFTER.get(target, ()):
        step(model)
