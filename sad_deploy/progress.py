"""How long work tells that it goes on; the command line draws it, a library caller may ignore it."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps to do)."""

Decoded = Callable[[int, int], None]
"""Called with (images decoded, images to decode)."""
