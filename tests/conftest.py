"""Shared by all tests."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

# A shell that starts the tests in the background has them ignore Ctrl-C, which their children would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# As the command line does: threads that spin while they wait slow everything on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The test helpers beside the tests (`differentiate`, …) are imported by name.
for folder in ("export",):
    sys.path.insert(0, str(Path(__file__).parent / folder))
