"""Reverse-mode differentiation of ONNX graphs, with standard operators only.

:mod:`.reverse` walks, :mod:`.registry` knows which rule belongs to a node, :mod:`.rules` holds the rules, and
:mod:`.words` what they ask of a target. May import :mod:`sad_export.graph`.
"""

from . import rules
from .registry import covered
from .reverse import reverse, without_rule
from .seed import LARGEST, Seed

__all__ = ["LARGEST", "Seed", "covered", "reverse", "without_rule"]
