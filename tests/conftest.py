"""Shared by all tests."""

from __future__ import annotations

import sys
from pathlib import Path

# The test helpers beside the tests (`differentiate`, …) are imported by name.
for folder in ("export",):
    sys.path.insert(0, str(Path(__file__).parent / folder))
